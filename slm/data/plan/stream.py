"""The stream of rows: which stored row of which source is row *n* of the run, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from slm.data.plan.mixture import Order
from slm.data.plan.order import Permutation
from slm.data.plan.schedule import Schedule

CHUNK = 1 << 20


class Stream(Protocol):
    """Sources are numbered; a *stored* row is one in the order of its source's packing."""

    def stored(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, stored row) of rows of the run, int64 each."""

    def row_of(self, source: int, stored: int, epoch: int, limit: int) -> int | None:
        """The row of the run at which a stored row comes in an epoch of its source, if it is below ``limit``."""

    def drawn(self, rows: int) -> np.ndarray:
        """Rows of each source among the first ``rows`` rows of the run."""


class Together:
    """One source, or several that are read together: an epoch has every row of every source once."""

    def __init__(self, names: Sequence[str], rows: Sequence[int], seed: int, order: Order) -> None:
        self._ends = np.cumsum(rows)
        self._starts = self._ends - rows
        self._permutation = Permutation.of(int(self._ends[-1]), seed, "+".join(names), order)

    def stored(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row = self._permutation.rows(numbers)
        if len(self._ends) == 1:
            return np.zeros(len(row), dtype=np.int64), row
        source = np.searchsorted(self._ends, row, side="right")
        return source, row - self._starts[source]

    def row_of(self, source: int, stored: int, epoch: int, limit: int) -> int | None:
        row = self._permutation.place(int(self._starts[source]) + stored, epoch)
        return row if row < limit else None

    def drawn(self, rows: int) -> np.ndarray:
        if len(self._ends) == 1:
            return np.array([rows])
        epochs, rest = divmod(rows, int(self._ends[-1]))
        counts = epochs * (self._ends - self._starts)
        for first in range(rows - rest, rows, CHUNK):
            source, _ = self.stored(np.arange(first, min(rows, first + CHUNK)))
            counts = counts + np.bincount(source, minlength=len(counts))
        return counts


class Mixed:
    """Several sources, of which a schedule says which one comes when; each has epochs of its own."""

    def __init__(self, schedule: Schedule, names: Sequence[str], rows: Sequence[int], seed: int, order: Order) -> None:
        self.schedule = schedule
        self._permutations = [Permutation.of(n, seed, name, order) for name, n in zip(names, rows, strict=True)]

    def stored(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source, rank = self.schedule.at(numbers)
        stored = np.empty(len(numbers), dtype=np.int64)
        for i in np.unique(source).tolist():
            mine = source == i
            stored[mine] = self._permutations[i].rows(rank[mine])
        return source, stored

    def row_of(self, source: int, stored: int, epoch: int, limit: int) -> int | None:
        return self.schedule.row_of(source, self._permutations[source].place(stored, epoch), limit)

    def drawn(self, rows: int) -> np.ndarray:
        return self.schedule.counts(rows)
