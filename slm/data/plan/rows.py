"""From pieces to arrays: tokens, targets, positions, documents and their boundaries, a batch at a time.

The only work per piece is copying its tokens; everything else is a handful of array operations per batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from slm.data.plan.index import Table

Take = Callable[[int, int], np.ndarray]
"""(place, tokens) -> the tokens, as `Documents.take`."""

LONG = 200
"""Mean length of a segment from which on a loop over segments is the faster way (measured)."""

IGNORED = -100
"""Target in padding."""


@dataclass(frozen=True)
class Row:
    """One row, each array of shape (seq_len,). ``targets`` are -100 in padding; ``docs`` counts pieces from 0."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    docs: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Several rows: int64 arrays of shape (rows, seq_len), as in `Row`.

    ``boundaries``: int32, where every segment (a piece, or the padding at the end of a row) begins in the flattened rows,
    then rows * seq_len; as long as there are segments, plus one.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    docs: np.ndarray
    boundaries: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def none(cls, seq_len: int) -> "Rows":
        """No rows."""
        nothing = np.empty((0, seq_len), dtype=np.int64)
        return cls(nothing, nothing, nothing, nothing, np.zeros(1, dtype=np.int32))

    def row(self, n: int) -> Row:
        return Row(self.tokens[n], self.targets[n], self.positions[n], self.docs[n])


def assemble(count: int, seq_len: int, eot: int, table: Table, takes: Sequence[Take]) -> Rows:
    """Rows 0 to ``count`` - 1 from their pieces; ``takes`` says where each piece's tokens are taken from."""
    sums = np.cumsum(table.length) - table.length
    per_row = np.bincount(table.row, minlength=count)
    first = np.cumsum(per_row) - per_row  # every row has a piece
    at = sums - sums[first][table.row] + table.row * seq_len
    used = np.add.reduceat(table.length, first)

    # one block for all: memory comes in few large pieces, and every element is written once
    tokens, targets, positions, docs = np.empty((4, count * seq_len), dtype=np.int64)
    starts, ends = table.starts, table.ends
    last = _copy(tokens, table.place, table.length - starts, at + starts, ends, takes)
    tokens[at[starts]] = eot
    padded = np.flatnonzero(used < seq_len)
    begin, stretch = padded * seq_len + used[padded], seq_len - used[padded]
    padding = np.repeat(begin - (np.cumsum(stretch) - stretch), stretch) + np.arange(int(stretch.sum()))
    tokens[padding] = eot

    targets[:-1] = tokens[1:]
    final = at + table.length - 1
    targets[final[ends]] = eot
    targets[final[~ends]] = last
    targets[padding] = IGNORED

    boundaries, numbers = _segments(at, begin, padded, per_row, len(tokens))
    _number(positions, docs, boundaries, numbers)
    shape = (count, seq_len)
    return Rows(
        tokens.reshape(shape),
        targets.reshape(shape),
        positions.reshape(shape),
        docs.reshape(shape),
        boundaries.astype(np.int32),
    )


def _number(positions: np.ndarray, docs: np.ndarray, boundaries: np.ndarray, numbers: np.ndarray) -> None:
    """Count within each segment, and write down its number: one by one where they are long, all at once where not."""
    sizes = np.diff(boundaries)
    if len(positions) < LONG * len(numbers):
        np.subtract(np.arange(len(positions)), np.repeat(boundaries[:-1], sizes), out=positions)
        docs[:] = np.repeat(numbers, sizes)
        return
    count = np.arange(int(sizes.max()))
    at = boundaries.tolist()
    for begin, end, number in zip(at, at[1:], numbers.tolist(), strict=False):
        positions[begin:end] = count[: end - begin]
        docs[begin:end] = number


def _copy(
    tokens: np.ndarray, place: np.ndarray, body: np.ndarray, into: np.ndarray, ends: np.ndarray, takes: Sequence[Take]
) -> list[int]:
    """Copy every piece's stored tokens into ``tokens``; returns the token after each piece that ends within its
    document: the last thing that it predicts."""
    after: list[int] = []
    todo = zip(place.tolist(), body.tolist(), into.tolist(), ends.tolist(), takes, strict=True)
    for start, size, to, whole, take in todo:
        if whole:
            if size:
                tokens[to : to + size] = take(start, size)
        else:
            stored = take(start, size + 1)
            tokens[to : to + size] = stored[:size]
            after.append(int(stored[size]))
    return after


def _segments(
    at: np.ndarray, begin: np.ndarray, padded: np.ndarray, per_row: np.ndarray, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """(where each piece and each padding begins and then ``end``, the number of each within its row), in the order of
    the flattened rows; padding follows the last piece of its row."""
    boundaries = np.concatenate([at, begin, [end]])
    boundaries.sort()
    counts = per_row.copy()
    counts[padded] += 1
    return boundaries, np.arange(len(boundaries) - 1) - np.repeat(np.cumsum(counts) - counts, counts)


@dataclass(frozen=True)
class SegmentBound:
    """How many segments a number of consecutive rows may have, so that ``cu_seqlens`` has one shape for a whole run.

    ``parts``: of every source, its largest share of the rows and its `Index.segments`.
    """

    parts: tuple[tuple[float, tuple[tuple[int, int], ...]], ...]

    @classmethod
    def of_sources(cls, sources: Sequence[tuple[float, Sequence[tuple[int, int]]]]) -> "SegmentBound":
        """For sources with their largest shares and their segments."""
        return cls(tuple((share, tuple(segments)) for share, segments in sources))

    def of(self, rows: int) -> int:
        """A bound for ``rows`` rows, a multiple of 64.

        The order of rows is a random permutation, so the number of segments keeps to Chernoff's bound (for draws without
        replacement: Hoeffding 1963, section 6). More than this comes once in 10^12 batches; whoever pads to it has to
        take a longer array then. Blocked orders, whose neighbours are alike, may need that more often.
        """
        return _bound(self.parts, rows)


@lru_cache(maxsize=64)
def _bound(parts: tuple[tuple[float, tuple[tuple[int, int], ...]], ...], rows: int) -> int:
    total = 0.0
    for share, segments in parts:
        drawn = (
            rows if share >= 1 else min(rows, math.ceil(rows * share) + 2)
        )  # within one row of its share at both ends
        sizes, number = (np.array(column, dtype=np.float64) for column in zip(*segments, strict=True))
        # E[exp(t size)] for a row drawn at random, scaled by the largest term so that nothing overflows
        t = np.geomspace(1e-6, 1e2, 400)[:, None] / sizes.max()
        log_mean = t[:, 0] * sizes.max() + np.log(
            (number * np.exp(t * (sizes - sizes.max()))).sum(axis=1) / number.sum()
        )
        likely = ((drawn * log_mean + 12 * math.log(10)) / t[:, 0]).min()
        total += min(likely, _fullest(segments, drawn))
    return 64 * math.ceil(total / 64)


def _fullest(segments: tuple[tuple[int, int], ...], drawn: int) -> int:
    """Segments of the ``drawn`` fullest rows, each of which may come twice where one epoch follows another."""
    total, times = 0, 2 + drawn // sum(rows for _, rows in segments)
    for size, rows in sorted(segments, reverse=True):
        taken = min(drawn, rows * times)
        total, drawn = total + taken * size, drawn - taken
    return total
