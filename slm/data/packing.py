"""Packing: which pieces of which documents stand together in a row.

A document of n tokens is a chain of n + 1 predictions: ``<|endoftext|>`` predicts its first token, and its
last token predicts ``<|endoftext|>``. A *piece* is a run of such predictions; a row holds pieces of at most
``seq_len`` predictions in all, and attention never crosses from one piece into another. No prediction is
lost and none is repeated, under either policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packed:
    """Pieces in row order: ``doc``, ``start`` and ``length`` of each; row r has pieces [row_ends[r-1], row_ends[r])."""

    doc: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.row_ends)


def pack(lengths: np.ndarray, seq_len: int, policy: str, window: int) -> Packed:
    """Pack documents of ``lengths`` tokens each into rows of ``seq_len`` predictions."""
    predictions = lengths + 1
    if policy == "concat":
        return _concat(predictions, seq_len)
    parts = [_best_fit(predictions[i : i + window], i, seq_len) for i in range(0, len(predictions), window)]
    offsets = np.cumsum([0, *(len(p.doc) for p in parts[:-1])])
    return Packed(
        np.concatenate([p.doc for p in parts]),
        np.concatenate([p.start for p in parts]),
        np.concatenate([p.length for p in parts]),
        np.concatenate([p.row_ends + o for p, o in zip(parts, offsets, strict=True)]),
    )


def _concat(predictions: np.ndarray, seq_len: int) -> Packed:
    """Cut the concatenation of all documents every ``seq_len`` predictions."""
    ends = np.cumsum(predictions)
    cuts = np.unique(np.concatenate([ends, np.arange(seq_len, ends[-1], seq_len)]))
    starts = np.concatenate([[0], cuts[:-1]])
    doc = np.searchsorted(ends, starts, side="right")
    row = starts // seq_len
    row_ends = np.searchsorted(row, np.arange(row[-1] + 1), side="right")
    return Packed(doc, starts - (ends - predictions)[doc], cuts - starts, row_ends)


def _best_fit(predictions: np.ndarray, first_doc: int, seq_len: int) -> Packed:
    """Best-fit decreasing of one window of documents.

    A document longer than a row fills whole rows with its beginning; what is left of it, and every shorter
    document, goes into the open row that it fills best. Open rows are found in O(1) by a big-integer bitmask of
    the free capacities that occur.
    """
    full = predictions // seq_len
    doc_full = np.repeat(np.arange(len(predictions)), full)
    start_full = (np.arange(len(doc_full)) - np.repeat(np.cumsum(full) - full, full)) * seq_len
    rest = predictions - full * seq_len
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}
    mask = 0
    for doc in np.argsort(-rest, kind="stable"):
        size = int(rest[doc])
        if size == 0:
            break
        fitting = mask >> size
        if fitting:
            capacity = size + (fitting & -fitting).bit_length() - 1
            row = free[capacity].pop()
            if not free[capacity]:
                mask &= ~(1 << capacity)
        else:
            capacity, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(int(doc))
        left = capacity - size
        if left:
            free.setdefault(left, []).append(row)
            mask |= 1 << left
    shared = np.array([doc for row in rows for doc in row], dtype=np.int64)
    doc = np.concatenate([doc_full, shared])
    return Packed(
        doc + first_doc,
        np.concatenate([start_full, full[shared] * seq_len]),
        np.concatenate([np.full(len(doc_full), seq_len), rest[shared]]),
        np.concatenate(
            [np.arange(1, len(doc_full) + 1), len(doc_full) + np.cumsum([len(r) for r in rows], dtype=np.int64)]
        ),
    )
