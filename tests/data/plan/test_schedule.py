"""Every source has had its due to within less than one row, after every single row."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data.plan import schedule as schedule_module
from slm.data.plan.mixture import GRID
from slm.data.plan.schedule import Schedule
from slm.data.plan.timeline import COARSE, LONG, STEPS, Flat, Segment, Slope, Timeline, apportioned, staircase


@st.composite
def weights(draw: st.DrawFn, sources: int) -> np.ndarray:
    """Millionths that sum to 1, of denominators large and small."""
    parts = draw(st.sampled_from([1, 2, 5, 10, 20, 100, 1000, GRID]))
    cuts = sorted(draw(st.lists(st.integers(0, parts), min_size=sources - 1, max_size=sources - 1)))
    return np.diff(np.array([0, *cuts, parts])) * (GRID // parts)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Stages, ramps and staircases of one to some thousands of rows."""
    sources = draw(st.integers(1, 8))
    segments: list[Segment] = []
    before = draw(weights(sources))
    for stage in range(draw(st.integers(1, 5))):
        after = draw(weights(sources))
        rows = draw(st.one_of(st.integers(1, 30), st.sampled_from([300, 4500])))
        kind = draw(st.sampled_from(["flat", "flat", "slope", "stairs"]))
        if kind == "flat":
            segments.append(Flat(rows, after, stage))
        elif kind == "slope":
            segments.append(Slope(rows, before, after, stage))
        else:
            segments += staircase(before, after, rows, stage)
        before = after
    if draw(st.booleans()):
        segments.append(Flat(None, before, 9))
    return Timeline(segments, sources)


def due_times(timeline: Timeline, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Numerators (rows + 1, sources) and denominators (rows + 1, 1) of what is due after every row, from the definition."""
    numerators, denominators = [], []
    whole = np.array([Fraction(0)] * timeline.sources)
    at = 0
    for segment in timeline.segments:
        length = min(rows - at, segment.rows if segment.rows is not None else rows)
        k = np.arange(length + 1).astype(object)[:, None]
        if isinstance(segment, Flat):
            gained, scale, last = segment.weights * k, GRID, (segment.weights * length, GRID)
        else:
            scale = 2 * segment.rows * GRID
            gained = 2 * segment.rows * segment.before * k + (segment.after - segment.before) * k * k
            last = (gained[-1], scale)
        numerators.append(gained[:-1] * 2 * GRID + np.array([int(w * 2 * GRID) * scale for w in whole]))
        denominators.append(np.full((length, 1), 2 * GRID * scale))
        whole = whole + np.array([Fraction(int(x), last[1]) for x in last[0]])
        at += length
        if at == rows:
            break
    numerators.append(np.array([[int(w * 2 * GRID) for w in whole]]))
    denominators.append(np.full((1, 1), 2 * GRID))
    return np.concatenate(numerators), np.concatenate(denominators)


@settings(max_examples=60, deadline=None)
@given(timelines(), st.data())
def test_every_source_has_its_due_at_every_prefix(timeline: Timeline, data: st.DataObject) -> None:
    rows = timeline.rows if timeline.rows is not None else timeline.starts[-1] + 3000
    schedule = Schedule.of(timeline, rows)
    source, rank = schedule.at(np.arange(rows))
    drawn = np.concatenate(
        [np.zeros((1, timeline.sources), np.int64), np.cumsum(source[:, None] == np.arange(timeline.sources), axis=0)]
    )
    assert np.array_equal(drawn[np.arange(rows), source], rank)  # a source's rows come in order, none is left out
    numerators, denominators = due_times(timeline, rows)
    assert (np.abs(drawn.astype(object) * denominators - numerators) < denominators).all()

    anywhere = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=8)))
    found = schedule.at(anywhere)
    assert np.array_equal(found[0], source[anywhere])
    assert np.array_equal(found[1], rank[anywhere])
    for row in anywhere.tolist():
        assert np.array_equal(schedule.counts(row), drawn[row])
        assert schedule.row_of(int(source[row]), int(rank[row]), rows) == row
        assert schedule.row_of(int(source[row]), int(rank[row]), row) is None


@settings(max_examples=30, deadline=None)
@given(timelines(), st.integers(1, 200))
def test_how_far_it_was_worked_out_changes_nothing(timeline: Timeline, rows: int) -> None:
    rows = rows if timeline.rows is None else min(rows, timeline.rows)
    whole, part = Schedule.of(timeline), Schedule.of(timeline, rows)
    last = 5000 if timeline.rows is None else timeline.rows
    assert np.array_equal(np.stack(whole.at(np.arange(last))), np.stack(part.at(np.arange(last))))


def test_patterns_are_found_again_after_ten_billion_rows() -> None:
    """What comes after a long stage is what comes after a short one with the same fractions due."""
    sources = 3
    a, b = np.array([500_000, 300_000, 200_000]), np.array([100_000, 100_000, 800_000])
    long = Timeline([Flat(10**10 + 3, a, 0), Flat(None, b, 1)], sources)
    short = Timeline([Flat(10**4 + 3, a, 0), Flat(None, b, 1)], sources)
    many, few = Schedule.of(long), Schedule.of(short)
    assert many.worked_out < 20_000
    tail = np.arange(-500, 500)
    assert np.array_equal(many.at(10**10 + 3 + tail)[0], few.at(10**4 + 3 + tail)[0])
    assert many.counts(10**10).tolist() == [5 * 10**9, 3 * 10**9, 2 * 10**9]


def test_a_long_ramp_keeps_to_the_line() -> None:
    before, after, rows = np.array([900_000, 99_800, 200]), np.array([100_000, 899_900, 100]), 10 * LONG
    stairs = staircase(before, after, rows, 0)
    assert len(stairs) == STEPS
    timeline = Timeline(stairs, 3)
    assert timeline.rows == rows
    step = rows / STEPS
    for start, due in zip(timeline.starts, timeline.due / (2 * GRID), strict=True):
        line = (before * start + (after - before) * start * start / (2 * rows)) / GRID
        assert np.abs(due - line).max() <= step / COARSE  # at the end of every step
    assert Schedule.of(timeline).worked_out < 3_000_000


@settings(deadline=None)
@given(weights(4), weights(4), st.integers(1, 3 * STEPS))
def test_steps_of_a_staircase_are_weights(before: np.ndarray, after: np.ndarray, rows: int) -> None:
    stairs = staircase(before, after, rows, 0)
    assert sum(s.rows or 0 for s in stairs) == rows
    for s in stairs:
        assert int(s.weights.sum()) == GRID
        assert (s.weights >= 0).all()


@settings(deadline=None)
@given(st.lists(st.integers(-50, 10**6), min_size=1, max_size=8), st.integers(0, 500))
def test_apportioned_sums_and_is_near(wanted: list[int], total: int) -> None:
    share = np.array(wanted)
    scale = max(1, int(np.maximum(share, 0).sum()) // max(1, total))
    given_ = apportioned(share, total, scale)
    assert int(given_.sum()) == total
    assert (given_ >= 0).all()


def test_a_schedule_that_took_long_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline([Flat(None, np.array([333_333, 333_334, 333_333]), 0)], 3)
    first = Schedule.of(timeline, 250_000, tmp_path)
    monkeypatch.setattr(schedule_module, "resolve", lambda *_: pytest.fail("worked out again"))
    second = Schedule.of(timeline, 250_000, tmp_path)
    rows = np.arange(0, 250_000, 7)
    assert np.array_equal(np.stack(first.at(rows)), np.stack(second.at(rows)))
    assert np.array_equal(second.counts(199_999), first.counts(199_999))
