"""The plan: row *n* of the run as a pure function of (store contents, data section, n).

No iterator state, no shuffle buffer: the order is arithmetic, so any world size, micro-batch or resume
point sees the same rows. Epoch e visits all rows of a split in the order of a keyed permutation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slm.config.errors import ConfigError
from slm.config.identity import fingerprint
from slm.data.config import Data
from slm.data.packing import pack
from slm.data.store import Store

VERSION = 1


@dataclass(frozen=True)
class Row:
    """One row, each array of shape (seq_len,). ``targets`` are -100 in padding; ``docs`` counts pieces from 0."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    docs: np.ndarray


class Plan:
    """The rows of one split of a store, in training order."""

    def __init__(self, store: Store, data: Data, split: str = "train") -> None:
        self.split, self.seq_len, self.eot = store.split(split), data.seq_len, store.tokenizer.eot_id
        if not len(self.split):
            raise ConfigError(f"The store {store.path} has no {split} documents. Raise data.heldout.")
        self.packed = pack(self.split.lengths, data.seq_len, data.packing, data.window)
        self.seed = data.seed
        self.described = {
            "version": VERSION,
            "store": store.content_hash,
            "split": split,
            "seq_len": data.seq_len,
            "packing": data.packing,
            "window": data.window,
            "seed": data.seed,
        }

    @property
    def hash(self) -> str:
        """16 hex digits: equal for plans that give equal rows."""
        return fingerprint(self.described)

    @property
    def rows_per_epoch(self) -> int:
        return len(self.packed)

    @property
    def tokens_per_epoch(self) -> int:
        """Predictions per epoch: every token of every document, and one end-of-text each."""
        return int(self.packed.length.sum())

    def row(self, n: int) -> Row:
        """Row ``n`` of the run (n >= 0; the epochs follow one another)."""
        epoch, index = divmod(n, self.rows_per_epoch)
        return self.stored_row(permute(index, self.rows_per_epoch, self.seed, epoch))

    def stored_row(self, index: int) -> Row:
        """Row ``index`` in packing order, before permutation."""
        ends = self.packed.row_ends
        first, last = (int(ends[index - 1]) if index else 0), int(ends[index])
        tokens = np.full(self.seq_len, self.eot, dtype=np.int64)
        targets = np.full(self.seq_len, -100, dtype=np.int64)
        positions = np.zeros(self.seq_len, dtype=np.int64)
        docs = np.full(self.seq_len, last - first, dtype=np.int64)  # padding is a piece of its own
        at = 0
        for number, piece in enumerate(range(first, last)):
            doc, start, length = (int(a[piece]) for a in (self.packed.doc, self.packed.start, self.packed.length))
            chain = self._chain(doc, start, length)
            span = slice(at, at + length)
            tokens[span], targets[span] = chain[:-1], chain[1:]
            positions[span], docs[span] = np.arange(length), number
            at += length
        positions[at:] = np.arange(self.seq_len - at)
        return Row(tokens, targets, positions, docs)

    def _chain(self, doc: int, start: int, length: int) -> np.ndarray:
        """``length + 1`` ids of (end-of-text, document, end-of-text), from index ``start``."""
        size = int(self.split.lengths[doc])
        body = self.split.read(doc, max(0, start - 1), min(size, start + length)).astype(np.int64)
        head = [self.eot] if start == 0 else []
        tail = [self.eot] if start + length == size + 1 else []
        return np.concatenate([head, body, tail]).astype(np.int64)


def permute(index: int, n: int, seed: int, epoch: int) -> int:
    """Where ``index`` goes in a keyed pseudo-random permutation of range(n), in O(1) memory.

    A four-round Feistel network over the smallest even number of bits that holds n, walked until the value
    falls inside the range (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for round_ in range(4):
            left, right = right, left ^ (_mix(right, seed, epoch, round_) & low)
        index = left << half | right
        if index < n:
            return index


def _mix(value: int, *key: int) -> int:
    """SplitMix64's finaliser over a value and a key."""
    x = value
    for k in key:
        x = (x + 0x9E3779B97F4A7C15 * (k + 1)) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return x
