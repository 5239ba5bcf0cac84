"""llm.c's and modded-nanogpt's token files: a header of 256 i32, then ids.

Header: magic, version, number of tokens. Magic 20240520, version 1: u16 ids of GPT-2; 20240801, version 7: u32 ids of
Llama 3 (`dev/data/data_common.py` of github.com/karpathy/llm.c). The mark stands *before* every document: GPT-2's
<|endoftext|> 50256, Llama 3's <|begin_of_text|> 128000. Shards are cut every 100M tokens or so, wherever that is: what stands before the first
mark continues the last document of the shard before, and becomes a document of its own, counted as a piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slm.config.errors import RunError
from slm.data.importers.base import DTYPES, TokenFile, TokenFileImporter, importer, tokens_in
from slm.data.importers.marks import split

HEADER = 256 * 4


@dataclass(frozen=True)
class _Kind:
    version: int
    width: str
    mark: int
    tokenizer: str


KINDS = {20240520: _Kind(1, "u16", 50256, "gpt2"), 20240801: _Kind(7, "u32", 128000, "llama-3")}
EVALUATION = 20240522
"""Magic of llm.c's files of multiple-choice questions."""


@importer.register("llmc", paper="Karpathy 2024, github.com/karpathy/llm.c")
class Llmc(TokenFileImporter):
    """llm.c's and modded-nanogpt's .bin with a header; documents begin with a mark (bos), by default that of its tokenizer."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.suffix == ".bin" and int(_header(path)[0]) in (*KINDS, EVALUATION)

    def read(self, path: Path, vocab_size: int) -> TokenFile:
        magic, version, count = (int(x) for x in _header(path)[:3])
        if magic not in KINDS:
            what = (
                "is one of llm.c's evaluation files"
                if magic == EVALUATION
                else f"begins with {magic}, none of llm.c's numbers"
            )
            raise RunError(
                f"{path}: {what}; token files begin with {' or '.join(map(str, KINDS))}. Headerless ids: format 'olmo'."
            )
        kind = KINDS[magic]
        if version != kind.version:
            raise RunError(f"{path}: is version {version} of its format; slm reads version {kind.version} of {magic}.")
        if path.stat().st_size < HEADER:
            raise RunError(f"{path}: ends within its header. It is cut off.")
        tokens = tokens_in(path, DTYPES[kind.width], HEADER)
        if tokens.count != count:
            raise RunError(
                f"{path}: its header promises {count} tokens, and {tokens.count} follow. It is cut off, or damaged."
            )
        marked = self if self.bos is not None else self.with_(bos=kind.mark)
        assert marked.bos is not None
        return split(tokens, marked.bos, "before", marked, vocab_size, tokenizer=kind.tokenizer)


def _header(path: Path) -> np.ndarray:
    """The header; zeros for what the file is too short for."""
    header = np.zeros(256, "<i4")
    found = np.fromfile(path, "<i4", 256)
    header[: len(found)] = found
    return header
