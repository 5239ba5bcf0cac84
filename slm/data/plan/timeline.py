"""How much of every source is due by when: the integral of the mixture's weights, in whole numbers.

Weights are whole millionths, and what is due is counted in half millionths of a row (`UNIT` to the row),
so that stages and straight ramps of any number of rows end on whole units: no rounding, at any length
below 2 x 10^12 rows.

A stage of constant weights is one `Flat` segment. A ramp of up to `STRAIGHT` rows is one `Slope`, exactly
linear from row to row. A longer one is a staircase of `STEPS` flat segments, each with the weights of its
middle, rounded to millionths, or to parts of `COARSE` where the ramp has more than `LONG` rows; what
rounding leaves is carried on. At the end of each step as much is due as on the straight line, to within
about one such part of the step's rows; inside a step it differs by up to rows x change / (8 STEPS^2) more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Literal

import numpy as np

from slm.data.plan.mixture import GRID

UNIT = 2 * GRID
"""What is due is counted in this part of a row."""

STRAIGHT = 1 << 14
STEPS = 256
LONG = 1 << 18
COARSE = 1000
"""Denominator of the weights in a ramp of more than `LONG` rows: the pattern of a step repeats after so many rows."""

NEVER = 1 << 60


@dataclass(frozen=True)
class Flat:
    """``rows`` rows (None: without end) of constant ``weights``, millionths of shape (sources,)."""

    rows: int | None
    weights: np.ndarray
    stage: int

    @property
    def period(self) -> int:
        """Rows in which a whole number of rows of every source becomes due."""
        return GRID // gcd(GRID, *self.weights.tolist())

    def gained(self, rows: int) -> np.ndarray:
        """Units of every source that become due within the first ``rows`` rows."""
        return self.weights * (2 * rows)

    def reach(self, source: np.ndarray, units: np.ndarray) -> np.ndarray:
        """After how many rows at least ``units`` (above 0) of each ``source`` have become due; `NEVER` if they don't."""
        slope = 2 * self.weights[source]
        return np.where(slope > 0, -(-units // np.maximum(slope, 1)), NEVER)

    def exceed(self, source: np.ndarray, units: np.ndarray) -> np.ndarray:
        """After how many rows more than ``units`` (not below 0) of each ``source`` have become due."""
        slope = 2 * self.weights[source]
        return np.where(slope > 0, units // np.maximum(slope, 1) + 1, NEVER)


@dataclass(frozen=True)
class Slope:
    """``rows`` rows over which the weights go from ``before`` to ``after`` in a straight line."""

    rows: int
    before: np.ndarray
    after: np.ndarray
    stage: int

    def gained(self, rows: int) -> np.ndarray:
        """As `Flat.gained`, at the end of the slope only (in between it is no whole number of units)."""
        assert rows in (0, self.rows)
        return (self.before + self.after) * rows

    def reach(self, source: np.ndarray, units: np.ndarray) -> np.ndarray:
        """As `Flat.reach`."""
        return self._search(source, units, "left")

    def exceed(self, source: np.ndarray, units: np.ndarray) -> np.ndarray:
        """As `Flat.exceed`."""
        return self._search(source, units, "right")

    def _search(self, source: np.ndarray, units: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
        found = np.full(len(source), NEVER)
        k = np.arange(self.rows + 1)
        for s in np.unique(source).tolist():
            before, after = int(self.before[s]), int(self.after[s])
            due = k * (2 * self.rows * before + (after - before) * k)  # ``rows`` times the units due after k rows
            mine = source == s
            most = (before + after) * self.rows
            found[mine] = np.searchsorted(due, np.minimum(units[mine], most + 1) * self.rows, side=side)
        return np.where(found > self.rows, NEVER, found)


Segment = Flat | Slope


class Timeline:
    """Segments one after the other. Only the last may be without end.

    Attributes: ``starts``, the first row of every segment, and the row after the last one (None without end); ``due``, units
    of every source at each of these rows, int64 of shape (segments + 1 or segments, sources).
    """

    def __init__(self, segments: Sequence[Segment], sources: int) -> None:
        self.segments, self.sources = list(segments), sources
        self.starts, due = [0], [np.zeros(sources, dtype=np.int64)]
        for segment in segments:
            if segment.rows is not None:
                self.starts.append(self.starts[-1] + segment.rows)
                due.append(due[-1] + segment.gained(segment.rows))
        self.due = np.stack(due)

    @property
    def rows(self) -> int | None:
        """Rows in all, None without end."""
        return self.starts[-1] if len(self.starts) > len(self.segments) else None

    def reached(self, source: int, units: int) -> int:
        """The first row by which ``units`` (above 0) of a source are due in all; `NEVER` if they never are."""
        border = int(np.searchsorted(self.due[:, source], units, side="left"))
        if border < 1 or border > len(self.segments):
            return NEVER
        rest = np.array([units - self.due[border - 1, source]])
        found = int(self.segments[border - 1].reach(np.array([source]), rest)[0])
        return min(NEVER, self.starts[border - 1] + found)

    def due_at(self, row: int) -> np.ndarray:
        """Rows of every source that are due by ``row``, as floats: for reports."""
        index = max(i for i, start in enumerate(self.starts) if start <= row)
        if index == len(self.segments):
            return self.due[index] / UNIT
        segment, inside = self.segments[index], row - self.starts[index]
        if isinstance(segment, Flat):
            return (self.due[index] + segment.gained(inside)) / UNIT
        bend = (segment.after - segment.before) * (inside * inside / segment.rows)
        return (self.due[index] + 2 * inside * segment.before + bend) / UNIT


def staircase(before: np.ndarray, after: np.ndarray, rows: int, stage: int) -> list[Flat]:
    """A ramp in steps: at most `STEPS`, one per row where there are fewer rows."""
    steps = min(STEPS, rows)
    grid = GRID if rows <= LONG else COARSE
    borders = [i * rows // steps for i in range(steps + 1)]
    low, high = before.astype(object), after.astype(object)  # Python's integers: these don't overflow
    flats, owed = [], low * 0
    for begin, end in pairwise(borders):
        size = 2 * rows * GRID * (end - begin)  # what one part of the grid comes to in the scale used here
        wanted = (low * (2 * rows - begin - end) + high * (begin + end)) * (grid * (end - begin)) + owed
        given = apportioned(wanted, grid, size)
        owed = wanted - given * size
        flats.append(Flat(end - begin, (given * (GRID // grid)).astype(np.int64), stage))
    return flats


def apportioned(wanted: np.ndarray, total: int, per_unit: int) -> np.ndarray:
    """Whole numbers near ``wanted / per_unit`` that are not negative and sum to ``total``: largest remainders."""
    given = np.maximum(wanted // per_unit, 0)
    remainder = wanted - given * per_unit
    for _ in range(abs(total - int(given.sum()))):
        up = int(given.sum()) < total
        places = np.arange(len(given)) if up else np.flatnonzero(given > 0)
        place = int(places[np.argmax(remainder[places])] if up else places[np.argmin(remainder[places])])
        given[place] += 1 if up else -1
        remainder[place] += -per_unit if up else per_unit
    return given


def without(weights: np.ndarray, gone: np.ndarray) -> np.ndarray | None:
    """Weights with those of the ``gone`` sources (bool) shared by the others in proportion, in millionths; None if no
    other has any."""
    rest = np.where(gone, 0, weights)
    total = int(rest.sum())
    return apportioned(rest * GRID, GRID, total) if total else None
