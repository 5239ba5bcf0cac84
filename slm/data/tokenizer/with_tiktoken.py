"""Encoding by OpenAI's tiktoken."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np

from slm.data.tokenizer import hf_file
from slm.data.tokenizer.base import Tokenizer
from slm.data.tokenizer.encoder import as_array
from slm.data.tokenizer.fast import Fast, byte_level_reason
from slm.data.tokenizer.hf import HuggingFace

BLOCK = 25_000
"""Characters. tiktoken 0.14 crashes on white space a million characters long; two blocks of it are left to others."""


class Tiktoken(Fast):
    """For byte-level BPE with one pattern that slm knows by name, and with merges in the order of their ids.

    tiktoken keeps no merges: it joins the neighbours whose union has the lowest rank, and takes a word whole if it is
    a token. `ranks_of` says for which merges that is the same.
    """

    package: ClassVar[str] = "tiktoken"

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        import tiktoken

        super().__init__(tokenizer, threads)
        assert isinstance(tokenizer, HuggingFace)
        ranks, patterns = ranks_of(tokenizer), hf_file.split_patterns(tokenizer.spec)
        assert isinstance(ranks, dict)
        assert patterns is not None
        self.inner = tiktoken.Encoding("slm", pat_str=patterns[0], mergeable_ranks=ranks, special_tokens={})

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
        return [as_array(self.inner.encode_ordinary(text)) for text in texts]


@lru_cache(maxsize=4)
def ranks_of(tokenizer: HuggingFace) -> dict[bytes, int] | str:
    """tiktoken's ranks for a byte-level BPE, or why there are none.

    Merging listed pairs in their order and joining by the rank of the union are the same if every token *t* of
    several bytes, cut by joins of lower rank alone, ends as exactly two parts, these are a listed merge, and such
    merges stand in the order of their tokens' ids. (Where two neighbours make up *t* and nothing of lower rank is left
    to join in the text, no earlier join crossed the ends of *t*, so its inside was joined as if it stood alone: the
    two neighbours are those two parts.) The vocabularies that byte-level training makes are of this kind.
    """
    chars = {c: b for b, c in hf_file.byte_alphabet().items()}
    added = set(hf_file.plain_added(tokenizer.spec))

    def spell(token: str) -> bytes:
        return bytes(chars[c] for c in token)

    place: dict[tuple[bytes, ...], int] = {}
    for number, (a, b) in enumerate(hf_file.merge_pairs(tokenizer.spec)):
        place.setdefault((spell(a), spell(b)), number)
    vocab = sorted(tokenizer.spec["model"]["vocab"].items(), key=lambda item: item[1])
    ranks = {spell(token): i for token, i in vocab if i not in tokenizer.special_ids and token not in added}
    last = -1
    for token, rank in ranks.items():
        if len(token) > 1:
            merge = place.get(tuple(_joined(token, ranks, rank)), -1)
            if merge <= last:
                return f"its token {token!r} isn't made by merges in the order of their ids"
            last = merge
    return ranks


def _joined(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """The parts of a token after all joins of lower rank."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        unions = [ranks.get(a + b, limit) for a, b in pairwise(parts)]
        lowest = min(unions)
        if lowest >= limit:
            break
        at = unions.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
