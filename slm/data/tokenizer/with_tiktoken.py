"""Encoding by OpenAI's tiktoken."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from slm.data.tokenizer import hf_file
from slm.data.tokenizer.base import END_OF_TEXT, Tokenizer
from slm.data.tokenizer.fast import Fast, byte_level_reason
from slm.data.tokenizer.hf import HuggingFace
from slm.data.tokenizer.ranks import ranks_of

LOOKING_AHEAD, PLAIN = r"|\s*[\r\n]+|\s+(?!\S)|\s+", r"|\s*[\r\n]+|\s+"
"""How most patterns end, and the same without the look ahead."""
RARE_SPACES = (
    "\t\x0b\x0c",
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
)
"""White space that is neither a space nor the end of a line: of ASCII, and beyond."""
BLOCK = 25_000
"""Characters. tiktoken 0.14 crashes on white space a million characters long; two blocks of it are left to others."""


class Tiktoken(Fast):
    """For byte-level BPE with one pattern that slm knows by name, and with merges in the order of their ids.

    tiktoken keeps no merges: it joins the neighbours whose union has the lowest rank, and takes a word whole if it is
    a token. `ranks_of` says for which merges that is the same.
    """

    package: ClassVar[str] = "tiktoken"

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        super().__init__(tokenizer, threads)
        assert isinstance(tokenizer, HuggingFace)
        patterns = hf_file.split_patterns(tokenizer.spec)
        assert patterns is not None
        self.pattern = patterns[0]

    @cached_property
    def whole(self) -> Any:
        """tiktoken with the whole pattern. Made when it is first needed: it has a copy of the vocabulary."""
        return self._encoding(self.pattern)

    @cached_property
    def simple(self) -> Any:
        """tiktoken without the look ahead; None where the pattern doesn't end in `LOOKING_AHEAD`."""
        if not self.pattern.endswith(LOOKING_AHEAD):
            return None
        return self._encoding(self.pattern.removesuffix(LOOKING_AHEAD) + PLAIN)

    def _encoding(self, pattern: str) -> Any:
        import tiktoken

        assert isinstance(self.tokenizer, HuggingFace)
        ranks = ranks_of(self.tokenizer)
        assert isinstance(ranks, dict)
        # The array comes without a list of Python's integers only from where special tokens are looked for, so there is
        # one; it isn't allowed in any text, so its characters are text.
        special = {END_OF_TEXT: self.tokenizer.vocab_size}
        return tiktoken.Encoding("slm", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)

    @classmethod
    def why_not(cls, tokenizer: Tokenizer) -> str:
        if reason := byte_level_reason(tokenizer):
            return reason
        assert isinstance(tokenizer, HuggingFace)
        patterns = hf_file.split_patterns(tokenizer.spec) or ()
        if len(patterns) != 1:
            return "it cuts text by several patterns in turn"
        if tokenizer.pretokenizer is None:
            return "it cuts text by a pattern that slm doesn't know by name"
        ranks = ranks_of(tokenizer)
        return ranks if isinstance(ranks, str) else ""

    def is_odd(self, text: str) -> bool:
        starts = range(0, len(text) - BLOCK + 1, BLOCK)
        return super().is_odd(text) or any(text[i : i + BLOCK].isspace() for i in starts)

    def _fast(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.tokenizer.normal_form:  # of assigned characters, NFC is the same in all versions of Unicode
            texts = [unicodedata.normalize(self.tokenizer.normal_form, text) for text in texts]  # type: ignore[arg-type]
        return [self._encoding_for(text).encode_to_numpy(text, disallowed_special=()) for text in texts]

    def _encoding_for(self, text: str) -> Any:
        return self.whole if self.simple is None or has_wide_space(text) else self.simple


def has_wide_space(text: str) -> bool:
    """Whether white space may stand side by side within a line. If not, ``\\s+(?!\\S)`` in `LOOKING_AHEAD` has nothing to say.

    Where it is asked, no end of a line follows within the white space (``\\s*[\\r\\n]+`` comes first), so the white space is one
    character, and taken whole with or without it. A pattern without a look ahead runs as an automaton, twice as fast.
    """
    return (
        "  " in text
        or any(c in text for c in RARE_SPACES[0])
        or (not text.isascii() and any(c in text for c in RARE_SPACES[1]))
    )
