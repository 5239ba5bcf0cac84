"""Which source row *n* of the run comes from, and which row of that source it is.

The requirement: after every row, each source has had its due (the integral of its weights) to within less
than one row. That is Tijdeman's chairman assignment (1980, "The chairman assignment problem"). Row j of a
source may come as soon as more than j - 1 rows of it are due, and must have come by the time that j are;
giving each row to the source whose deadline is next meets all deadlines, because in any stretch of rows no
more of them begin and end than there are rows (Hall's condition). Deadlines look across the borders of
stages, so nothing has to be made good after a border.

Under constant weights with common denominator D the state recurs after some multiple of D rows. So a stage
is worked out row by row until it does, once; then follows the same pattern until D rows before the end of
the stage, where the first deadline from beyond it appears. What is kept is a few patterns per stage, and
any row is found by a search among stages and a division.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slm.config.identity import fingerprint
from slm.data.plan.cache import Array, Arrays, Say, Writer, cached
from slm.data.plan.simulate import Run, resolve
from slm.data.plan.timeline import Flat, Timeline

VERSION = 1
"""Raised when the same timeline would give another order of sources."""

WORTH_KEEPING = 200_000
"""Rows worked out from which on a schedule is kept on disk."""


class Schedule:
    """Where every row of a timeline comes from; worked out up to a row, and further when asked for."""

    def __init__(self, timeline: Timeline, table: "_Table") -> None:
        self.timeline, self._table = timeline, table

    @classmethod
    def of(
        cls, timeline: Timeline, rows: int | None = None, cache_dir: Path | str | None = None, say: Say | None = None
    ) -> "Schedule":
        """The schedule of the first ``rows`` rows (None: of all), kept in the cache if it took long to work out."""
        last = timeline.rows if rows is None else rows
        if cache_dir is None or _cost(timeline, last) < WORTH_KEEPING:
            return cls(timeline, _Table.of(resolve(timeline, last), timeline.sources))
        made_from = {"version": VERSION, "timeline": fingerprint(_described(timeline)), "rows": last}
        arrays = cached(
            cache_dir,
            fingerprint(made_from),
            made_from,
            lambda writer: _Table.of(resolve(timeline, last), timeline.sources).write(writer),
            say,
        )
        return cls(timeline, _Table(arrays, timeline.sources))

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many rows of it came before) of each of the given rows of the run."""
        if len(rows):
            self._extend(int(rows.max()) + 1)
        t = self._table
        run = np.searchsorted(t.first, rows, side="right") - 1
        cycle, inside = np.divmod(rows - t.first[run], t.period[run])
        place = t.at[run] + inside
        source = t.source.take(place).astype(np.int64)
        return source, t.drawn[run, source] + cycle * t.per_cycle[run, source] + t.rank.take(place)

    def counts(self, row: int) -> np.ndarray:
        """Rows of each source among the first ``row`` rows of the run."""
        self._extend(row)
        t = self._table
        run = int(np.searchsorted(t.first, row, side="right")) - 1
        cycle, inside = divmod(row - int(t.first[run]), int(t.period[run]))
        begun = t.source.read(int(t.at[run]), int(t.at[run]) + inside)
        return t.drawn[run] + cycle * t.per_cycle[run] + np.bincount(begun, minlength=self.timeline.sources)

    def row_of(self, source: int, rank: int, limit: int) -> int | None:
        """The row of the run at which row ``rank`` of a source comes, if that is below ``limit``."""
        if limit <= 0 or int(self.counts(limit)[source]) <= rank:
            return None
        t = self._table
        run = int(np.searchsorted(t.drawn[:, source], rank, side="right")) - 1
        cycle, left = divmod(rank - int(t.drawn[run, source]), int(t.per_cycle[run, source]))
        pattern = t.source.read(int(t.at[run]), int(t.at[run] + t.period[run]))
        return int(t.first[run] + cycle * t.period[run] + np.flatnonzero(pattern == source)[left])

    @property
    def worked_out(self) -> int:
        """Rows that had to be worked out one by one."""
        return len(self._table.source)

    def _extend(self, rows: int) -> None:
        if rows > self._table.end:
            ask = max(rows, 2 * self._table.end)
            last = ask if self.timeline.rows is None else min(ask, self.timeline.rows)
            self._table = _Table.of(resolve(self.timeline, last), self.timeline.sources)


class _Table:
    """Runs as arrays: ``first`` row, ``period`` and place of the pattern (``at``), and of each source how many rows come
    before (``drawn``) and in one ``per_cycle``; and all patterns together: ``source`` and its ``rank`` in the cycle."""

    SMALL = ("first", "period", "drawn", "per_cycle", "end")

    def __init__(self, arrays: Arrays, sources: int) -> None:
        first, period, drawn, per_cycle, end = (arrays[n].read(0, len(arrays[n])) for n in self.SMALL)
        self.first, self.period, self.end = first, period, int(end[0])
        self.drawn, self.per_cycle = drawn.reshape(-1, sources), per_cycle.reshape(-1, sources)
        self.at = np.cumsum(period) - period
        self.source: Array = arrays["source"]
        self.rank: Array = arrays["rank"]

    @classmethod
    def of(cls, runs: list[Run], sources: int) -> "_Table":
        kind = np.uint8 if sources <= 256 else np.uint16
        columns = {
            "first": np.array([r.first for r in runs]),
            "period": np.array([len(r.pattern) for r in runs]),
            "drawn": np.concatenate([r.drawn for r in runs]),
            "per_cycle": np.concatenate([np.bincount(r.pattern, minlength=sources) for r in runs]),
            "end": np.array([runs[-1].first + runs[-1].rows]),
            "source": np.concatenate([r.pattern.astype(kind) for r in runs]),
            "rank": np.concatenate([_ranks(r.pattern, sources) for r in runs]),
        }
        return cls(Arrays({}, {name: Array(column) for name, column in columns.items()}), sources)

    def write(self, writer: Writer) -> dict[str, Any]:
        for name in self.SMALL[:-1]:
            writer.append(name, getattr(self, name).ravel())
        writer.append("end", np.array([self.end]))
        writer.append("source", self.source.data)
        writer.append("rank", self.rank.data)
        return {}


def _ranks(pattern: np.ndarray, sources: int) -> np.ndarray:
    """How often the same source came before, at each place of a pattern."""
    ranks = np.empty(len(pattern), dtype=np.int32)
    counts = np.bincount(pattern, minlength=sources)
    ranks[np.argsort(pattern, kind="stable")] = np.arange(len(pattern)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _cost(timeline: Timeline, rows: int | None) -> int:
    """About how many rows `resolve` has to work out one by one."""
    cost = 0
    for start, segment in zip(timeline.starts, timeline.segments, strict=False):
        within = [n for n in (segment.rows, None if rows is None else max(0, rows - start)) if n is not None]
        cost += min([*within, 4 * segment.period] if isinstance(segment, Flat) else within)
    return cost


def _described(timeline: Timeline) -> list[Any]:
    return [
        [s.rows, s.weights.tolist()] if isinstance(s, Flat) else [s.rows, s.before.tolist(), s.after.tolist()]
        for s in timeline.segments
    ]
