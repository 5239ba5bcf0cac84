"""datatrove's tokenised files: ``x.ds`` (ids, no header), ``x.ds.index`` (u64 ends of documents), ``x.ds.metadata`` (text).

Written by its `DocumentTokenizer`, read by nanotron. The metadata's first line is ``<tokenizer>|<bytes per id>``, the second
the number of tokens. Documents usually end with the tokenizer's end-of-text id (its option ``eos_token``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slm.config.errors import ConfigError, RunError
from slm.data.importers.base import (
    DTYPES,
    TokenFile,
    TokenFileImporter,
    Width,
    bound_by_ends,
    importer,
    read_array,
    tokens_in,
)
from slm.data.importers.marks import strip


@importer.register("datatrove", paper="Penedo et al. 2024, github.com/huggingface/datatrove")
class Datatrove(TokenFileImporter):
    """datatrove's .ds with .ds.index, as nanotron reads it."""

    dtype: Width = "auto"
    """Width of an id; ``auto`` takes what .ds.metadata says, else what fits .ds.index."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.name.endswith(".ds")

    def named(self, path: Path) -> Path:
        for suffix in (".index", ".metadata", ".loss"):
            if path.name.endswith(".ds" + suffix):
                return path.with_name(path.name.removesuffix(suffix))
        return path

    def read(self, path: Path, vocab_size: int) -> TokenFile:
        if _beside(path, ".loss").exists():
            raise RunError(
                f"{_beside(path, '.loss')}: a loss mask, which stores don't keep: masked tokens would be trained on. "
                f"Move the mask away to import all tokens."
            )
        if not _beside(path, ".index").is_file():
            raise RunError(
                f"{_beside(path, '.index')}: is missing. To find documents by their end mark instead, import the file as "
                f"'olmo', with its dtype and eos."
            )
        ends = read_array(_beside(path, ".index"), "<u8")
        tokenizer, width, count = _metadata(_beside(path, ".metadata"))
        dtype = self._dtype(path, width, int(ends[-1]) if len(ends) else 0)
        tokens = tokens_in(path, dtype)
        if count is not None and count != tokens.count:
            raise RunError(
                f"{path}: has {tokens.count} tokens, but its metadata promises {count}. It is cut off, or other."
            )
        bounds = bound_by_ends(ends, tokens.count, _beside(path, ".index"), path)
        return strip(tokens, bounds, self, vocab_size, tokenizer=tokenizer)

    def _dtype(self, path: Path, width: int | None, end: int) -> np.dtype:
        if self.dtype != "auto":
            dtype = DTYPES[self.dtype]
            if width is not None and width != dtype.itemsize:
                raise ConfigError(f"{path}: dtype={self.dtype}, but its metadata says {width} bytes per id.")
            return dtype
        fits = [
            d
            for d in DTYPES.values()
            if d.itemsize == width or (width is None and end * d.itemsize == path.stat().st_size)
        ]
        if len(fits) != 1:
            raise RunError(
                f"{path}: the width of its ids can't be told: its {path.stat().st_size} bytes aren't {end} ids, where its index "
                f"ends, of 2 or 4 bytes. It is cut off, or the index is of another file."
                if width is None
                else f"{path}: its metadata says {width} bytes per id; slm knows 2 and 4."
            )
        return fits[0]


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _metadata(path: Path) -> tuple[str | None, int | None, int | None]:
    """Name of the tokenizer, bytes per id, number of tokens: None each if the file doesn't exist (it is optional)."""
    if not path.is_file():
        return None, None, None
    try:
        first, second, *_ = path.read_text("utf-8").split("\n")
        name, _, width = first.rpartition("|")
        return name or None, int(width), int(second)
    except ValueError:
        raise RunError(
            f"{path}: isn't datatrove's metadata (tokenizer|bytes, number of tokens). Remove it to go without."
        ) from None
