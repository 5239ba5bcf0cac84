"""From what the user says (stages, weights, caps) to a timeline in rows, before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from slm.config.durations import Duration
from slm.config.errors import ConfigError, suggest
from slm.data.plan.mixture import Mixture, millionths
from slm.data.plan.timeline import NEVER, STRAIGHT, UNIT, Flat, Segment, Slope, Timeline, staircase, without


@dataclass(frozen=True)
class Horizon:
    """What is known of the run: rows in all, rows per step, parameters of the model. Durations need them."""

    rows: int | None = None
    batch_rows: int | None = None
    params: int | None = None


@dataclass(frozen=True)
class Span:
    """A stage in rows: [first, last), last None for the rest of the run. Weights in millionths, by source number."""

    first: int
    last: int | None
    before: np.ndarray
    weights: np.ndarray
    ramp: bool


@dataclass(frozen=True)
class Exhausted:
    """A source that reached its ``max_epochs`` at a row of the run."""

    source: int
    row: int
    stage: int


@dataclass(frozen=True)
class Resolved:
    """``timeline`` of the run; ``limit``: rows that there are, None without end."""

    spans: tuple[Span, ...]
    timeline: Timeline
    limit: int | None
    exhausted: tuple[Exhausted, ...] = field(default=())


def spans_of(mixture: Mixture, names: Sequence[str], seq_len: int, horizon: Horizon) -> tuple[Span, ...]:
    """The stages in rows.

    Raises:
        ConfigError: an unknown source, one without any weight, stages out of order, a duration that can't be resolved.
    """
    for number, stage in enumerate(mixture.stages):
        for name in stage.weights:
            _known(name, names, f"stage {number} of the mixture")
    for name in mixture.max_epochs:
        _known(name, names, "max_epochs of the mixture")
    if idle := [n for n in names if not any(n in s.weights for s in mixture.stages)]:
        raise ConfigError(
            f"No stage of the mixture gives a weight to {', '.join(map(repr, idle))}. Give it one (0 will do), or remove the "
            f"source."
        )
    spans: list[Span] = []
    first, before = 0, np.zeros(len(names), dtype=np.int64)
    for number, stage in enumerate(mixture.stages):
        weights = np.array([millionths(stage.weights.get(n, 0.0)) for n in names], dtype=np.int64)
        last = None if stage.until is None else _rows(stage.until, seq_len, horizon, number)
        if last is None and stage.ramp:
            last = horizon.rows
            if last is None:
                raise ConfigError(f"Stage {number} of the mixture is a ramp, so it needs an 'until'.")
        if last is not None and last <= first:
            raise ConfigError(
                f"Stage {number} of the mixture ends at row {last:,} ('{stage.until}' in rows of {seq_len:,} tokens), but it begins "
                f"at row {first:,}. Stages follow one another; 'until' counts from the start of the run."
            )
        spans.append(Span(first, last, before, weights, stage.ramp))
        first, before = last or 0, weights
    end = spans[-1].last
    if end is not None and horizon.rows is not None and end < horizon.rows:
        raise ConfigError(
            f"The mixture's last stage ends at row {end:,}, but the run has {horizon.rows:,} rows of {seq_len:,} tokens. Leave out "
            f"its 'until', or add a stage."
        )
    return tuple(spans)


def resolve_mixture(spans: tuple[Span, ...], caps: np.ndarray, on_exhaust: str) -> Resolved:
    """The timeline, and where sources reach their ``caps`` (rows of each, `NEVER` for no cap).

    A source never gives more rows than its cap: its weight ends at the last row by which no more are due. Unless the
    others take over (``renormalise``), the run has no rows from there on.
    """
    if on_exhaust == "renormalise":
        return _renormalised(spans, caps)
    timeline = Timeline([s for i, span in enumerate(spans) for s in _segments(span, i)], len(caps))
    for index, (start, segment) in enumerate(zip(timeline.starts, timeline.segments, strict=False)):
        over = _over(segment, timeline.due[index], caps)
        if (first := int(over.min())) <= _last(segment):
            row = start + first - 1
            found = tuple(Exhausted(int(s), row, segment.stage) for s in np.flatnonzero(over == first))
            return Resolved(spans, timeline, row, found)
    return Resolved(spans, timeline, timeline.rows)


def _renormalised(spans: tuple[Span, ...], caps: np.ndarray) -> Resolved:
    """The timeline in which the weight of a source that ran out is shared by the others from that row on."""
    done: list[Segment] = []
    exhausted: list[Exhausted] = []
    row, due, gone = 0, np.zeros(len(caps), dtype=np.int64), np.zeros(len(caps), dtype=bool)
    for stage, span in enumerate(spans):
        todo = _segments(span, stage)
        while todo:
            asked = todo.pop(0)
            if isinstance(asked, Slope):
                if gone.any() or int(_over(asked, due, caps).min()) <= asked.rows:
                    todo = list(
                        staircase(asked.before, asked.after, asked.rows, stage)
                    )  # flat steps can be shared and cut
                    continue
                segment: Segment = asked
            else:
                shared = without(asked.weights, gone)
                if shared is None:  # nothing is left to read
                    return Resolved(spans, Timeline(done, len(caps)), row, tuple(exhausted))
                segment = Flat(asked.rows, shared, stage)
            over = _over(segment, due, caps)
            over[gone] = NEVER
            if (first := int(over.min())) <= _last(segment):
                assert isinstance(segment, Flat)
                assert isinstance(asked, Flat)
                exhausted += [Exhausted(int(s), row + first - 1, stage) for s in np.flatnonzero(over == first)]
                gone = gone | (over == first)
                todo.insert(0, Flat(None if asked.rows is None else asked.rows - (first - 1), asked.weights, stage))
                segment = Flat(first - 1, segment.weights, stage)
            if segment.rows != 0:
                done.append(segment)
            if segment.rows is not None:
                row, due = row + segment.rows, due + segment.gained(segment.rows)
    timeline = Timeline(done, len(caps))
    return Resolved(spans, timeline, timeline.rows, tuple(exhausted))


def _segments(span: Span, stage: int) -> list[Segment]:
    if not span.ramp:
        return [Flat(None if span.last is None else span.last - span.first, span.weights, stage)]
    assert span.last is not None
    rows = span.last - span.first
    if rows <= STRAIGHT:
        return [Slope(rows, span.before, span.weights, stage)]
    return list(staircase(span.before, span.weights, rows, stage))


def _over(segment: Segment, due: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """After how many rows of a segment more of each source is due than its cap; `NEVER` if that doesn't happen."""
    over = np.full(len(caps), NEVER)
    capped = np.flatnonzero(caps < NEVER)
    over[capped] = segment.exceed(capped, caps[capped] * UNIT - due[capped])
    return over


def _last(segment: Segment) -> int:
    return NEVER - 1 if segment.rows is None else segment.rows


def cap_rows(mixture: Mixture, names: Sequence[str], rows: Sequence[int]) -> np.ndarray:
    """How many rows each source may give, `NEVER` without a cap."""
    caps = [
        int(Fraction(repr(float(mixture.max_epochs[n]))) * r) if n in mixture.max_epochs else NEVER
        for n, r in zip(names, rows, strict=True)
    ]
    return np.minimum(np.array(caps, dtype=object), NEVER).astype(np.int64)


def check_exhaustion(
    resolved: Resolved, mixture: Mixture, names: Sequence[str], rows: Sequence[int], horizon: Horizon
) -> None:
    """Refuse a run that needs more of a source than its cap, where the user asked for an error.

    Raises:
        ConfigError: which source runs out, where, and how many epochs of it the run would need.
    """
    if horizon.rows is None or resolved.limit is None or horizon.rows <= resolved.limit or not resolved.exhausted:
        return
    if mixture.on_exhaust == "stop":
        return
    first = resolved.exhausted[0]
    where = f"at row {first.row:,} of {horizon.rows:,}"
    if horizon.batch_rows:
        where += f" (step {first.row // horizon.batch_rows:,})"
    if mixture.on_exhaust == "renormalise":
        raise ConfigError(
            f"Every source with a weight has been read max_epochs times at row {resolved.limit:,} of {horizon.rows:,}. Raise "
            f"max_epochs, add a source, or shorten the run."
        )
    needed = resolved.timeline.due_at(horizon.rows)[first.source] / rows[first.source]
    name = names[first.source]
    raise ConfigError(
        f"The source {name!r} runs out {where}, in stage {first.stage}: max_epochs allows {mixture.max_epochs[name]:g} epochs of "
        f"its {rows[first.source]:,} rows, and this run would read {needed:.2f}. Raise max_epochs, lower its weight, shorten the "
        f"run, or set on_exhaust to 'renormalise' or 'stop'."
    )


def _known(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        raise ConfigError(f"Unknown source {name!r} in {where}. {suggest(name, names)}")


def _rows(until: Duration, seq_len: int, horizon: Horizon, stage: int) -> int:
    """A duration from the start of the run, in rows."""
    needs = {"steps": horizon.batch_rows, "tokens_per_param": horizon.params, "%": horizon.rows}
    if until.unit in needs and needs[until.unit] is None:
        raise ConfigError(
            f"'until: {until}' of stage {stage} of the mixture can't be turned into rows without the run that it belongs to; "
            f"write it in tokens."
        )
    if until.unit == "steps":
        return round(until.value * (horizon.batch_rows or 0))
    return until.to_steps(batch_tokens=seq_len, params=horizon.params or 0, total_steps=horizon.rows)
