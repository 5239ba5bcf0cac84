"""Whether joining by rank, which is what tiktoken does, is the same as a byte-level BPE's merges in their order."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

import numpy as np

from slm.data.tokenizer import hf_file
from slm.data.tokenizer.hf import HuggingFace

NONE = np.iinfo(np.int64).max
"""The rank of what is no token."""


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
    vocab = sorted(tokenizer.spec["model"]["vocab"].items(), key=lambda item: item[1])
    own = [(token, i) for token, i in vocab if i not in tokenizer.special_ids and token not in added]
    spelled = {token: bytes([chars[c] for c in token]) for token, _ in own}
    ranks = {spelled[token]: i for token, i in own}
    place: dict[tuple[int, int], int] = {}
    for number, (a, b) in enumerate(hf_file.merge_pairs(tokenizer.spec)):
        if a in spelled and b in spelled:
            place.setdefault((ranks[spelled[a]], ranks[spelled[b]]), number)
    parts, last = _two_parts(ranks), -1
    for token, rank in ranks.items():
        if len(token) > 1:
            merge = place.get(parts[rank], -1) if rank in parts else -1
            if merge <= last:
                return f"its token {token!r} isn't made by merges in the order of their ids"
            last = merge
    return ranks


def _two_parts(ranks: dict[bytes, int]) -> dict[int, tuple[int, int]]:
    """The two tokens that each token of several bytes ends as, after all joins of lower rank; without those that end as more.

    All tokens of a length are joined at once, as rows of the ids of their parts.
    """
    size = max(ranks.values(), default=0) + 1
    unions = _unions(ranks, size)
    of_byte = np.array([ranks.get(bytes([b]), -1) for b in range(256)])
    rows_of: dict[int, list[bytes]] = defaultdict(list)
    for token in ranks:
        rows_of[len(token)].append(token)
    found: dict[int, tuple[int, int]] = {}
    for tokens in [tokens for length, tokens in rows_of.items() if length > 1]:
        own = np.array([ranks[token] for token in tokens])
        parts = of_byte[np.frombuffer(b"".join(tokens), dtype=np.uint8)].reshape(len(tokens), -1)
        spelled = (parts >= 0).all(axis=1)
        own, parts = own[spelled], parts[spelled]
        while parts.shape[1] > 2 and len(parts):
            rank = _ranks(unions, parts[:, :-1] * size + parts[:, 1:])
            at = rank.argmin(axis=1)
            rows = np.arange(len(parts))
            lowest = rank[rows, at]
            parts[rows, at] = lowest
            keep = np.ones(parts.shape, dtype=bool)
            keep[rows, at + 1] = False
            parts = parts[keep].reshape(len(parts), -1)
            goes_on = lowest < own
            own, parts = own[goes_on], parts[goes_on]
        found |= zip(own.tolist(), map(tuple, parts.tolist()), strict=True)
    return found


def _unions(ranks: dict[bytes, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of tokens whose union is one: (``size * first + second``, sorted; the union's rank)."""
    pairs = []
    for token, rank in ranks.items():
        for i in range(1, len(token)):
            first, second = ranks.get(token[:i]), ranks.get(token[i:])
            if first is not None and second is not None:
                pairs.append((first * size + second, rank))
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    table = table[np.argsort(table[:, 0])]
    return table[:, 0], table[:, 1]


def _ranks(unions: tuple[np.ndarray, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """The rank of each pair's union."""
    keys, ranks = unions
    if not len(keys):
        return np.full(pairs.shape, NONE)
    at = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
    return np.where(keys[at] == pairs, ranks[at], NONE)
