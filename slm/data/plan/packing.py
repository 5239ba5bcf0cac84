"""Packing: which pieces of which documents stand together in a row.

A document of n tokens is a chain of n + 1 predictions: ``<|endoftext|>`` predicts its first token, and its
last token predicts ``<|endoftext|>``. A *piece* is a run of such predictions; a row holds pieces of at most
``seq_len`` predictions in all, and attention never crosses from one piece into another.

========  ==============================================================================================
best_fit  documents longer than a row fill whole rows with their beginning; what is left, and every shorter
          document, goes where it fits best among a window of documents (Ding et al. 2024, arXiv
          2404.10830). Nothing is lost, documents are cut only where they must be.
concat    one long stream, cut every ``seq_len`` predictions. Nothing is lost, most documents are cut.
pad       a document per row; long ones take several. Nothing is lost, the rest of a row is padding.
crop      rows begin with a document, the largest ones that fit follow, and the shortest of the window is
          cropped to fill the row; what is cropped is dropped (as nanochat does). For comparisons only.
========  ==============================================================================================

Under every policy but ``crop`` each prediction stands in exactly one row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from slm.data.plan.documents import Documents
from slm.data.plan.mixture import Policy

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total)."""

CHUNK = 1 << 15
"""Documents looked at in one go where the policy has no window of its own."""


@dataclass(frozen=True)
class Window:
    """Some consecutive documents: number of the first, predictions of each, place of each one's first token."""

    first: int
    predictions: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Packed:
    """Whole rows: ``counts`` pieces in each, and of every piece, in row order, its document, the place of its first
    stored token, its length in predictions, and whether it starts and ends its document."""

    doc: np.ndarray
    place: np.ndarray
    length: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    counts: np.ndarray


def pack(
    documents: Documents, seq_len: int, policy: Policy, window: int, progress: Progress | None = None
) -> Iterator[Packed]:
    """Pack all documents into rows of ``seq_len`` predictions, some rows at a time, in bounded memory."""
    size = window if policy == "best_fit" else CHUNK
    windows = _windows(documents, size, progress or (lambda *_: None))
    if policy == "best_fit":
        return (_best_fit(w, seq_len) for w in windows)
    if policy == "pad":
        return (_pad(w, seq_len) for w in windows)
    return _concat(windows, seq_len) if policy == "concat" else _crop(windows, seq_len, window)


def _windows(documents: Documents, size: int, progress: Progress) -> Iterator[Window]:
    total = len(documents)
    stride = size * max(1, CHUNK // size)  # small windows are read many at a time
    for first in range(0, total, stride):
        last = min(total, first + stride)
        predictions, offsets = documents.lengths(first, last) + 1, documents.offsets(first, last)
        for i in range(0, last - first, size):
            yield Window(first + i, predictions[i : i + size], offsets[i : i + size])
        progress("packing", last, total)


def _pieces(window: Window, doc: np.ndarray, start: np.ndarray, length: np.ndarray, counts: np.ndarray) -> Packed:
    """Pieces of one window's documents (numbered within it); ``start`` counts the document's predictions."""
    return Packed(
        doc + window.first,
        window.offsets[doc] + np.maximum(start - 1, 0),
        length,
        start == 0,
        start + length == window.predictions[doc],
        counts,
    )


def _pad(window: Window, seq_len: int) -> Packed:
    rows = -(-window.predictions // seq_len)
    doc, start = _cut(rows, seq_len)
    return _pieces(
        window, doc, start, np.minimum(seq_len, window.predictions[doc] - start), np.ones(len(doc), np.int64)
    )


def _cut(times: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Document and start of every piece, where document d has ``times[d]`` pieces, ``seq_len`` apart."""
    doc = np.repeat(np.arange(len(times)), times)
    return doc, (np.arange(len(doc)) - np.repeat(np.cumsum(times) - times, times)) * seq_len


def _concat(windows: Iterator[Window], seq_len: int) -> Iterator[Packed]:
    """Cut the concatenation of all documents. An unfinished row is carried over to the next window."""
    carried: list[Packed] = []
    at = 0  # predictions in the unfinished row
    for window in windows:
        ends = at + np.cumsum(window.predictions)
        cuts = np.unique(np.concatenate([ends, np.arange(seq_len, ends[-1], seq_len)]))
        begins = np.concatenate([[at], cuts[:-1]])
        doc = np.searchsorted(ends, begins, side="right")
        pieces = _pieces(window, doc, begins - (ends - window.predictions)[doc], cuts - begins, np.empty(0, np.int64))
        rows, at = divmod(int(ends[-1]), seq_len)
        carried.append(pieces)
        if rows:
            whole = _joined(carried)
            row_ends = np.flatnonzero(np.cumsum(whole.length) % seq_len == 0) + 1
            yield _part(whole, slice(0, row_ends[-1]), np.diff(row_ends, prepend=0))
            carried = [_part(whole, slice(row_ends[-1], None), np.empty(0, np.int64))]
    rest = _joined(carried) if carried else None
    if rest is not None and len(rest.doc):
        yield _part(rest, slice(None), np.array([len(rest.doc)]))


def _joined(parts: list[Packed]) -> Packed:
    doc, place, length, starts, ends = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("doc", "place", "length", "starts", "ends")
    )
    return Packed(doc, place, length, starts, ends, np.empty(0, np.int64))


def _part(p: Packed, part: slice, counts: np.ndarray) -> Packed:
    return Packed(p.doc[part], p.place[part], p.length[part], p.starts[part], p.ends[part], counts)


def _best_fit(window: Window, seq_len: int) -> Packed:
    """Best-fit decreasing of what is left of each document after the whole rows it fills alone."""
    full = window.predictions // seq_len
    doc_full, start_full = _cut(full, seq_len)
    rest = window.predictions - full * seq_len
    order, row, rows = best_fit(rest, seq_len)
    by_row = np.argsort(_narrow(row, rows), kind="stable")
    shared = order[by_row]
    return _pieces(
        window,
        np.concatenate([doc_full, shared]),
        np.concatenate([start_full, full[shared] * seq_len]),
        np.concatenate([np.full(len(doc_full), seq_len), rest[shared]]),
        np.concatenate([np.ones(len(doc_full), np.int64), np.bincount(row, minlength=rows)]),
    )


def best_fit(sizes: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Put items of ``sizes`` (below ``room``; empty ones are left out) into rows of ``room``, best fit, largest first.

    Equal items are placed together: a row with c free takes c // size of them before the next row is looked at, and
    rows of equal content are handled as ranges, so the loop runs once per distinct size and free space rather than
    per item. The tightest row that fits is found in one step in a big integer whose bit c says that rows with c free
    exist.

    Returns:
        (items in the order in which they were placed, the row of each, number of rows)
    """
    counts = np.bincount(sizes, minlength=room)
    counts[0] = 0
    occurring = np.flatnonzero(counts)[::-1]
    total = int(counts.sum())
    order = np.argsort(_narrow(np.where(sizes > 0, room - sizes, room), room + 1), kind="stable")[:total]
    free: dict[int, list[tuple[int, int]]] = {}  # free space -> ranges (first row, rows)
    mask, rows = 0, 0
    placed: list[tuple[int, int, int]] = []  # (first row, rows, items in each)
    for size, left in zip(occurring.tolist(), counts[occurring].tolist(), strict=True):
        while left:
            fitting = mask >> size
            space = size + (fitting & -fitting).bit_length() - 1 if fitting else room
            each = space // size
            wanted = left // each
            if not wanted:
                wanted, each = 1, left
            if fitting:
                ranges = free[space]
                first, there = ranges.pop()
                if wanted < there:
                    ranges.append((first + wanted, there - wanted))
                else:
                    wanted = there
                    if not ranges:
                        mask ^= 1 << space
            else:
                first, rows = rows, rows + wanted
            placed.append((first, wanted, each))
            left -= wanted * each
            if space := space - each * size:
                if mask >> space & 1:
                    free[space].append((first, wanted))
                else:
                    free[space] = [(first, wanted)]
                    mask |= 1 << space
    first_row, number, per_row = np.array(placed, dtype=np.int64).reshape(-1, 3).T
    items = number * per_row
    step = np.repeat(np.arange(len(items)), items)
    within = np.arange(total) - (np.cumsum(items) - items)[step]
    return order, first_row[step] + within // per_row[step], rows


def _narrow(values: np.ndarray, limit: int) -> np.ndarray:
    """Values below ``limit`` in two bytes where they fit: numpy sorts those in linear time."""
    return values.astype(np.uint16) if limit <= 1 << 16 else values


def _crop(windows: Iterator[Window], seq_len: int, pool_size: int) -> Iterator[Packed]:
    """Fill every row to the brim from a pool of ``pool_size`` documents (more, where these would not fill it)."""
    pool = _Pool(seq_len)
    for window in windows:
        for doc, (size, offset) in enumerate(zip(window.predictions.tolist(), window.offsets.tolist(), strict=True)):
            pool.add(size, window.first + doc, offset)
            if pool.documents >= pool_size and pool.predictions >= seq_len:
                pool.fill_row()
        if pool.counts:
            yield pool.flush()
    while pool.documents:
        pool.fill_row()
    if pool.counts:
        yield pool.flush()


class _Pool:
    """Documents waiting for a row, by size; all that are longer than a row have one size."""

    def __init__(self, room: int) -> None:
        self.room, self.mask, self.documents, self.predictions = room, 0, 0, 0
        self._by_size: dict[int, deque[tuple[int, int, int]]] = {}
        self._out: list[tuple[int, int, int, bool]] = []
        self.counts: list[int] = []

    def add(self, size: int, doc: int, offset: int) -> None:
        key = min(size, self.room + 1)
        if self.mask >> key & 1:
            self._by_size[key].append((size, doc, offset))
        else:
            self._by_size[key] = deque([(size, doc, offset)])
            self.mask |= 1 << key
        self.documents += 1
        self.predictions += size

    def fill_row(self) -> None:
        """Take the largest document that fits, again and again; then crop the shortest one to what is left."""
        left, before = self.room, len(self._out)
        while left and self.mask:
            fitting = self.mask & ((1 << left + 1) - 1)
            key = (fitting if fitting else self.mask & -self.mask).bit_length() - 1
            waiting = self._by_size[key]
            size, doc, offset = waiting.popleft()
            if not waiting:
                self.mask ^= 1 << key
            self.documents -= 1
            self.predictions -= size
            length = min(size, left)
            self._out.append((doc, offset, length, length == size))
            left -= length
        self.counts.append(len(self._out) - before)

    def flush(self) -> Packed:
        """The rows filled so far."""
        doc, place, length, ends = (np.array(column) for column in zip(*self._out, strict=True))
        packed = Packed(doc, place, length, np.ones(len(doc), dtype=bool), ends, np.array(self.counts))
        self._out, self.counts = [], []
        return packed
