"""The order of rows: keyed permutations computed from the row's number, never stored.

An epoch of n rows is visited in the order of a pseudo-random permutation of range(n) that depends on the
seed, the source's name and the epoch. It is a four-round Feistel network over the smallest even number of
bits that holds n, walked until the value falls inside the range (Black & Rogaway 2002, "Ciphers with
arbitrary finite domains"): O(1) memory, invertible, and good for any n below 2^62.

Two modes. ``global`` permutes all rows. ``blocked`` permutes blocks of neighbouring rows, then the rows
within each group of blocks: rows that are near in time are near on disk, which is what a remote store
with a local cache wants. Both visit every row exactly once per epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from slm.data.plan.mixture import Order

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_ROUNDS = 4
_ONE, _STEP, _FIRST, _SECOND = (np.uint64(c) for c in (1, _GOLDEN, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_30, _27, _31 = (np.uint64(c) for c in (30, 27, 31))

STRETCH = 1 << 9
"""Neighbouring rows whose places are worked out together."""


def permute(index: int, n: int, seed: int, epoch: int) -> int:
    """Where ``index`` goes in the permutation of range(n) with key (seed, epoch)."""
    half, low = _halves(n)
    while True:
        left, right = index >> half, index & low
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (_mix(right, seed, epoch, round_) & low)
        index = left << half | right
        if index < n:
            return index


def unpermute(index: int, n: int, seed: int, epoch: int) -> int:
    """The inverse of `permute`."""
    half, low = _halves(n)
    while True:
        left, right = index >> half, index & low
        for round_ in reversed(range(_ROUNDS)):
            left, right = right ^ (_mix(left, seed, epoch, round_) & low), left
        index = left << half | right
        if index < n:
            return index


def permute_many(index: np.ndarray, n: int, seed: int | np.ndarray, epoch: int | np.ndarray) -> np.ndarray:
    """`permute` of an int64 array; ``seed`` (uint64) and ``epoch`` may be arrays of the same shape."""
    half, low = (np.uint64(x) for x in _halves(n))
    value = index.astype(np.uint64)
    seeds, epochs = np.broadcast_to(_u64(seed), value.shape), np.broadcast_to(_u64(epoch), value.shape)
    todo: np.ndarray | slice = slice(None)  # what still lies outside the range
    while True:
        left, right = value[todo] >> half, value[todo] & low
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (_mix_many(right, seeds[todo], epochs[todo], _u64(round_)) & low)
        value[todo] = left << half | right
        todo = np.flatnonzero(value >= np.uint64(n))
        if not len(todo):
            return value.astype(np.int64)


def _halves(n: int) -> tuple[int, int]:
    """Bits of half a value, and their mask."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    return half, (1 << half) - 1


def _mix(value: int, *key: int) -> int:
    """SplitMix64's finaliser over a value and a key."""
    x = value
    for k in key:
        x = (x + _GOLDEN * (k + 1)) & _MASK
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x


def _mix_many(value: np.ndarray, *key: np.ndarray) -> np.ndarray:
    """`_mix` of uint64 arrays, which wrap around by themselves."""
    x = value.copy()
    for k in key:
        x += (k + _ONE) * _STEP
        x ^= x >> _30
        x *= _FIRST
        x ^= x >> _27
        x *= _SECOND
        x ^= x >> _31
    return x


def _u64(value: int | np.ndarray) -> np.ndarray:
    """A uint64 array (0-d arrays wrap around without the warning that scalars give)."""
    if isinstance(value, np.ndarray):
        return value.astype(np.uint64)
    return np.array([value & _MASK], dtype=np.uint64)


@dataclass(frozen=True)
class Permutation:
    """The orders of all epochs over the ``n`` stored rows of one source."""

    n: int
    key: int
    order: Order

    @classmethod
    def of(cls, n: int, seed: int, source: str, order: Order) -> "Permutation":
        """Keyed by seed and source name: a source keeps its order whatever else is in the mixture."""
        return cls(n, int.from_bytes(hashlib.sha256(f"{seed}:{source}".encode()).digest()[:8], "big"), order)

    def rows(self, ranks: np.ndarray) -> np.ndarray:
        """Stored rows of the given places in the source's stream of rows (int64; the epochs follow one another)."""
        if not len(ranks):
            return ranks
        stretches = ranks // STRETCH
        first, last = int(stretches.min()), int(stretches.max())
        if last - first > 1:
            return self._rows(ranks)
        # neighbours come one after the other: work them out together, which costs little more than a few
        known = np.concatenate([_stretch(self, stretch) for stretch in range(first, last + 1)])
        return known[ranks - first * STRETCH]

    def _rows(self, ranks: np.ndarray) -> np.ndarray:
        epoch, at = np.divmod(ranks, self.n)
        if self.order.mode == "global":
            return permute_many(at, self.n, self.key, epoch)
        at = self._within_groups(at, epoch)
        full = self.n // self.order.block
        block, inside = np.divmod(at, self.order.block)
        whole = (
            block < full
        )  # the rest of less than a block keeps its place at the end; the shift says which rows it has
        block[whole] = permute_many(block[whole], max(1, full), self.key, epoch[whole])
        shift = _mix_many(_u64(epoch), _u64(self.key)) % np.uint64(self.n)
        return (block * self.order.block + inside + shift.astype(np.int64)) % self.n

    def place(self, row: int, epoch: int) -> int:
        """Where stored row ``row`` comes in the stream of the source's rows in an epoch: the inverse of `rows`."""
        if self.order.mode == "global":
            return epoch * self.n + unpermute(row, self.n, self.key, epoch)
        at = (row - _mix(epoch, self.key) % self.n) % self.n
        full = self.n // self.order.block
        block, inside = divmod(at, self.order.block)
        if block < full:
            block = unpermute(block, full, self.key, epoch)
        at = block * self.order.block + inside
        group, inside = divmod(at, self._group)
        size = min(self._group, self.n - group * self._group)
        return epoch * self.n + group * self._group + unpermute(inside, size, _mix(group, self.key), epoch)

    @property
    def _group(self) -> int:
        """Rows that are shuffled among one another."""
        return self.order.block * self.order.group

    def _within_groups(self, at: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        group, inside = np.divmod(at, self._group)
        keys = _mix_many(_u64(group), _u64(self.key))
        rest = self.n % self._group
        for whole, size in ((group < self.n // self._group, self._group), (group >= self.n // self._group, rest)):
            if whole.any():
                inside[whole] = permute_many(inside[whole], size, keys[whole], epoch[whole])
        return group * self._group + inside


@lru_cache(maxsize=256)
def _stretch(permutation: Permutation, number: int) -> np.ndarray:
    return permutation._rows(np.arange(number * STRETCH, (number + 1) * STRETCH))
