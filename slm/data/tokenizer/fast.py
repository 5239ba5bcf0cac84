"""Backends that are many times as fast as the tokenizer's own library, for tokenizers that they encode exactly.

That a backend gives the same ids is argued where it says `why_not`, held by tests over all of Unicode, and checked
again on real documents by `Verified`. What can't be known to be the same is left to the tokenizer itself, document
by document; see `Fast.is_odd`.
"""

from __future__ import annotations

import abc
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np

from slm.data.tokenizer import hf_file
from slm.data.tokenizer.base import Tokenizer, refuse_broken, spread
from slm.data.tokenizer.encoder import Encoder, as_array
from slm.data.tokenizer.hf import HuggingFace

MOST_ADDED = 64
"""Added tokens that are looked for in every text; with more, looking costs more than is gained."""


class Fast(Encoder):
    """A library of its own beside the tokenizer's."""

    package: ClassVar[str]

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        self.name, self.tokenizer, self.threads = self.package, tokenizer, threads
        added = hf_file.plain_added(tokenizer.spec) if isinstance(tokenizer, HuggingFace) else []
        self._added = re.compile("|".join(map(re.escape, added))) if added else None

    @classmethod
    @abc.abstractmethod
    def why_not(cls, tokenizer: Tokenizer) -> str:
        """Why this backend can't encode for a tokenizer, in words that end a sentence; empty if it can."""

    @abc.abstractmethod
    def _fast(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode on the calling thread."""

    def is_odd(self, text: str) -> bool:
        """Whether the tokenizer itself has to encode a text.

        Libraries are built with tables of different Unicode versions (gigatoken 0.10 with 17, tokenizers 0.23 and
        tiktoken 0.14 with 16), so what is a letter to one is none to another: all characters that Python's older
        tables don't have are odd. So are added tokens that aren't special: libraries find them in different ways.
        """
        return has_unassigned(text) or (self._added is not None and self._added.search(text) is not None)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            refuse_broken(text)
        odd = [i for i, text in enumerate(texts) if self.is_odd(text)]
        own = self.tokenizer.encode_batch([texts[i] for i in odd], self.threads) if odd else []
        if odd:
            texts = list(texts)
            for i in odd:
                texts[i] = ""
        out = self._fast(texts) if self.threads == 1 or len(texts) < 2 else spread(texts, self.threads, self._fast)
        for i, ids in zip(odd, own, strict=True):
            out[i] = as_array(ids)
        return out


def byte_level_reason(tokenizer: Tokenizer) -> str:
    """Why a byte-level backend can't encode for a tokenizer, apart from its pattern."""
    if not isinstance(tokenizer, HuggingFace) or tokenizer.alphabet != "bytes":
        return "it isn't byte-level BPE"
    spec = tokenizer.spec
    if tokenizer.loss:
        return f"it {tokenizer.loss}"
    if tokenizer.producible:
        return f"text could become its special token {tokenizer.producible[0]!r}"
    if any(spec["model"].get(k) for k in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token")):
        return "its model marks parts of words or unknown ones"
    if hf_file.split_patterns(spec) is None:
        return "it cuts text by other means than patterns"
    if len(hf_file.plain_added(spec)) > MOST_ADDED:
        return f"it has more than {MOST_ADDED} added tokens that aren't special"
    return ""


def has_unassigned(text: str) -> bool:
    """Whether a text has a character that this Python's Unicode tables don't know."""
    if text.isascii():
        return False
    return bool(_unassigned()[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")].any())


@lru_cache(maxsize=1)
def _unassigned() -> np.ndarray:
    """Which code points are unassigned, bool of shape (0x110000,)."""
    table = np.zeros(0x110000, dtype=bool)
    table[0x40000:0xE0000] = True  # planes 4 to 13 are empty in every version
    for block in (range(0x40000), range(0xE0000, 0x110000)):
        table[block.start : block.stop] = [unicodedata.category(chr(c)) == "Cn" for c in block]
    return table
