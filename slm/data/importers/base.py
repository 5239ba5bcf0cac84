"""What a foreign token file is to slm: where its tokens lie, and where its documents begin and end.

A store keeps documents without marks (end of text, begin of text) between them. Foreign files have marks, so a document is
a range of tokens, and the marks lie in the gaps between ranges: nothing is copied, and every token is accounted for,
``count == tokens in documents + marks in gaps``.

An importer's `read` looks at every token once, in pieces: an id that the tokenizer doesn't have, or a mark that isn't where
it should be, shows that the file was made with another tokenizer or isn't what it seems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from slm.config.errors import ConfigError, RunError, suggest
from slm.config.registry import Part, Registry
from slm.data.document import Broken

PIECE = 1 << 22
"""Tokens looked at in one go."""
DTYPES: dict[str, np.dtype[Any]] = {"u16": np.dtype("<u2"), "u32": np.dtype("<u4")}


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A file of tokens that stays where it is, and the documents in it.

    ``starts`` and ``ends`` (int64, shape (documents,)) count tokens from ``byte_offset`` on and leave out marks; documents
    without tokens are left out and counted in ``empty``.
    """

    tokens_path: Path
    byte_offset: int
    dtype: np.dtype[Any]
    """``<u2`` or ``<u4``."""
    count: int
    """Tokens in the file, from ``byte_offset`` to its end."""
    starts: np.ndarray
    ends: np.ndarray
    ids: list[str] | None = None
    """Ids of the documents, if the format has any; else `id_of` makes some."""
    specials: Mapping[int, int] = field(default_factory=dict)
    """What stands in the gaps: id of a mark -> how many."""
    empty: int = 0
    """Documents without tokens."""
    pieces: int = 0
    """Documents that lack a mark: cut off, or continued from another file."""
    inner: int = 0
    """Ids of marks *inside* of documents: the text had them, or the file's index is wrong."""
    tokenizer: str | None = None
    """What the file says of its tokenizer."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def tokens(self) -> int:
        """Tokens in documents."""
        return int((self.ends - self.starts).sum())

    def id_of(self, document: int) -> str:
        """Its id: the format's, or the file's name and the document's first token."""
        return self.ids[document] if self.ids else f"{self.tokens_path.name}:{self.starts[document]}"

    def read(self, document: int) -> np.ndarray:
        """The tokens of a document."""
        start, end = int(self.starts[document]), int(self.ends[document])
        offset = self.byte_offset + start * self.dtype.itemsize
        return np.fromfile(self.tokens_path, self.dtype, end - start, offset=offset)


class ImporterPart(Part):
    """A format of ready-made tokens."""

    eos: int | None = pydantic.Field(None, ge=0)
    """Id of the mark that ends every document in the files; null: none does (or the format's own)."""
    bos: int | None = pydantic.Field(None, ge=0)
    """Id of the mark that begins every document; null: none does (or the format's own)."""
    unmarked: bool = False
    """Take documents as they are, although all of them end (or begin) with one and the same id that is not named as a mark."""
    pieces: bool = False
    """Accept documents that lack a mark: pieces of documents, cut by whoever made the files. They are counted."""

    def files(self, path: Path) -> list[Path]:
        """The files of this format at ``path`` (itself, or in it and below), sorted. Raises `ConfigError` if there are none."""
        if path.is_file():
            return [self.named(path)]
        found = sorted(p for p in path.rglob("*") if p.is_file() and self.claims(p)) if path.is_dir() else []
        if not found:
            near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            what = f"no {self.part_name} files are in it" if path.is_dir() else f"it doesn't exist. {near}"
            raise ConfigError(f"{path}: {what}".strip().rstrip(".") + ".")
        return found

    def named(self, path: Path) -> Path:
        """The token file, if the user named a file that goes with it."""
        return path

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Whether the file is of this format, by its name, its neighbours and its first bytes."""
        raise NotImplementedError


class TokenFileImporter(ImporterPart):
    """A format whose tokens slm can use where they are."""

    def read(self, path: Path, vocab_size: int) -> TokenFile:
        """Describe and check a file. Raises `RunError` for whatever is wrong with it, `ConfigError` for a wrong setting."""
        raise NotImplementedError


class TokenListImporter(ImporterPart):
    """A format whose tokens must be copied."""

    def read(self, path: Path, vocab_size: int) -> Iterator[tuple[str, np.ndarray] | Broken]:
        """(id, tokens without marks: uint32) of every document, or why a record is none. Raises `RunError` as above."""
        raise NotImplementedError


importer = Registry("importer", ImporterPart)
ImporterSlot = Annotated[ImporterPart, importer.field()]

Width = Literal["auto", "u16", "u32"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a file, to be read in pieces."""

    path: Path
    byte_offset: int
    dtype: np.dtype[Any]
    count: int

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, ids) of every piece. (Not a memory map: what was read should not count as memory used.)"""
        with self.path.open("rb") as file:
            file.seek(self.byte_offset)
            for start in range(0, self.count, PIECE):
                wanted = min(PIECE, self.count - start)
                ids = np.fromfile(file, self.dtype, wanted)
                if len(ids) < wanted:
                    raise RunError(
                        f"{self.path}: became shorter while it was read. Copy it whole, and import it again."
                    )
                yield start, ids

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The ids at some positions, in any order."""
        if not len(positions):
            return np.empty(0, self.dtype)
        return np.array(np.memmap(self.path, self.dtype, "r", self.byte_offset, (self.count,))[positions])


def tokens_in(path: Path, dtype: np.dtype[Any], byte_offset: int = 0) -> Tokens:
    """All tokens from an offset on. Raises `RunError` if the rest of the file isn't a whole number of them."""
    size = path.stat().st_size - byte_offset
    if size % dtype.itemsize:
        raise RunError(
            f"{path}: {size} bytes of tokens are no whole number of {dtype.name}. The file is cut off, or other."
        )
    return Tokens(path, byte_offset, dtype, size // dtype.itemsize)


def read_array(path: Path, dtype: str) -> np.ndarray:
    """A whole file of numbers. Raises `RunError` if it is missing or not a whole number of them."""
    if not path.is_file():
        raise RunError(f"{path}: is missing. Without it the documents' bounds are unknown.")
    if path.stat().st_size % np.dtype(dtype).itemsize:
        raise RunError(
            f"{path}: {path.stat().st_size} bytes are no whole number of {np.dtype(dtype).name}. It is cut off."
        )
    return np.fromfile(path, dtype)


def bound_by_ends(ends: np.ndarray, count: int, path: Path, whose: Path) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (int64) of documents that follow each other. Raises `RunError` unless they fill the ``count`` tokens."""
    bounds = np.concatenate([np.zeros(1, np.int64), ends.astype(np.int64)])
    if (falls := np.flatnonzero(np.diff(bounds) < 0)).size:
        at = int(falls[0])
        raise RunError(
            f"{path}: document {at} ends at token {bounds[at + 1]}, before it begins ({bounds[at]}). It is damaged."
        )
    if bounds[-1] != count:
        raise RunError(
            f"{path}: its documents end at token {bounds[-1]}, but {whose.name} has {count}. They don't belong together."
        )
    return bounds[:-1], bounds[1:]
