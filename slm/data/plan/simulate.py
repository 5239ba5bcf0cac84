"""Working out a schedule row by row, and recognising where it repeats itself. See `schedule`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heappushpop

import numpy as np

from slm.data.plan.timeline import NEVER, UNIT, Flat, Timeline

CHUNK = 1 << 11
"""Rows worked out in one go, about."""

FAR = 1 << 40
"""Deadlines further away than this are all the same."""


@dataclass(frozen=True)
class Run:
    """Rows [first, first + rows): a pattern of sources, over and over. ``drawn``: rows of each source before it."""

    first: int
    rows: int
    pattern: np.ndarray
    drawn: np.ndarray


def resolve(timeline: Timeline, rows: int | None) -> list[Run]:
    """The runs of at least the first ``rows`` rows; None for all of a timeline without end."""
    runs: list[Run] = []
    loose: list[tuple[int, np.ndarray, np.ndarray]] = []  # (row, drawn before, sources) worked out since the last run
    drawn = np.zeros(timeline.sources, dtype=np.int64)

    def tie() -> None:
        if loose:
            pattern = np.concatenate([sources for _, _, sources in loose])
            runs.append(Run(loose[0][0], len(pattern), pattern, loose[0][1]))
            loose.clear()

    for index, start in enumerate(timeline.starts[: len(timeline.segments)]):
        if rows is not None and start >= max(rows, 1):
            break
        for row, pattern, cycles in _segment(timeline, index, drawn, rows):
            if cycles is None:
                loose.append((row, drawn.copy(), pattern))
            else:
                tie()
                runs.append(Run(row, len(pattern) * cycles, pattern, drawn.copy()))
            drawn += np.bincount(pattern, minlength=timeline.sources) * (1 if cycles is None else cycles)
    tie()
    return runs


def _segment(
    timeline: Timeline, index: int, drawn: np.ndarray, rows: int | None
) -> Iterator[tuple[int, np.ndarray, int | None]]:
    """(row, sources of the rows from there, None or how often they repeat) until the end of the segment or, roughly, of
    ``rows``. The caller keeps ``drawn`` up to date."""
    segment, start = timeline.segments[index], timeline.starts[index]
    if not isinstance(segment, Flat):
        yield start, _work_out(timeline, index, start, segment.rows, drawn), None
        return
    end = NEVER if segment.rows is None else start + segment.rows
    stop = end if rows is None else min(end, max(rows, 1))
    chunk = segment.period * max(1, CHUNK // segment.period)
    seen: dict[bytes, int] | None = {}  # states at whole periods -> chunks worked out by then
    chunks: list[np.ndarray] = []
    row = start
    while row < stop:
        if seen is not None:
            state = (_ceil(timeline.due[index] + segment.gained(row - start)) - drawn).tobytes()
            if state in seen:
                pattern = np.concatenate(chunks[seen[state] :])
                # no further than where the first deadline from beyond the segment may appear
                cycles = (end - segment.period - 1 - row) // len(pattern)
                if cycles > 0:
                    yield row, pattern, cycles
                    if segment.rows is None:
                        return
                    row += cycles * len(pattern)
                seen, chunks = None, []
                continue
            seen[state] = len(chunks)
        some = min(chunk, stop - row)
        pattern = _work_out(timeline, index, row, some, drawn)
        chunks.append(pattern)
        yield row, pattern, None
        row += some


def _work_out(timeline: Timeline, index: int, row: int, rows: int, drawn: np.ndarray) -> np.ndarray:
    """The sources of ``rows`` rows of a segment from ``row`` on: earliest deadline first, then lowest number."""
    segment, inside, due = timeline.segments[index], row - timeline.starts[index], timeline.due[index]
    ready = _ceil(due + segment.gained(inside))
    released = _ceil(due + segment.gained(inside + rows))
    sources = timeline.sources
    source = np.repeat(np.arange(sources), released - ready)
    first = np.cumsum(released - ready) - (released - ready)
    before = ready[source] + np.arange(len(source)) - first[source]  # rows of the source before this one
    slot = segment.exceed(source, before * UNIT - due[source]) - 1 - inside
    deadline = segment.reach(source, (before + 1) * UNIT - due[source])
    beyond = np.flatnonzero(deadline > (NEVER - 1 if segment.rows is None else segment.rows))
    deadline += timeline.starts[index]
    deadline[beyond] = [timeline.reached(int(source[i]), (int(before[i]) + 1) * UNIT) for i in beyond]
    order = np.argsort(slot, kind="stable")
    keys = _keys(deadline - row, source, sources)[order].tolist()
    waiting = np.flatnonzero(ready > drawn)
    at = np.array([timeline.reached(int(s), (int(drawn[s]) + 1) * UNIT) for s in waiting], dtype=np.int64)
    heap = _keys(at - row, waiting, sources).tolist()
    return _earliest_first(heap, keys, np.bincount(slot, minlength=rows).tolist()) % sources


def _earliest_first(heap: list[int], keys: list[int], arrivals: list[int]) -> np.ndarray:
    """One key per row, the smallest there is; ``arrivals`` of the ``keys`` come before each row is given."""
    heapify(heap)
    coming = iter(keys)
    given = []
    for number in arrivals:
        if number == 1:
            given.append(heappushpop(heap, next(coming)))
        else:
            for _ in range(number):
                heappush(heap, next(coming))
            given.append(heappop(heap))
    return np.array(given, dtype=np.int64)


def _keys(rows_left: np.ndarray, source: np.ndarray, sources: int) -> np.ndarray:
    return np.minimum(rows_left, FAR) * sources + source


def _ceil(units: np.ndarray) -> np.ndarray:
    return -(-units // UNIT)
