"""What a run will read, as a table: per stage and source, before anything is spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slm.data.plan.mixture import GRID
from slm.data.plan.plan import Plan, Source


@dataclass(frozen=True)
class Line:
    """One source in one stage: rows [first_row, last_row) of the run (last_row None: without end, then amounts are None).

    ``weight`` at the beginning and at the end of the stage, as asked for; ``rows`` drawn; ``tokens``, the predictions in
    them, and ``padding`` (of the source's average row); ``epochs`` read within the stage and by its end; ``unique``, the
    share of the rows that had not been read before; ``dropped``, predictions that the packing left out of these epochs.
    """

    stage: int
    source: str
    first_row: int
    last_row: int | None
    weight: tuple[float, float]
    rows: int | None
    tokens: int | None
    padding: int | None
    epochs: float | None
    epochs_so_far: float | None
    unique: float | None
    dropped: int | None


def table(plan: Plan) -> list[Line]:
    """A line for every source in every stage that the run reaches."""
    lines: list[Line] = []
    for stage, (first, last, before, after) in enumerate(_stages(plan)):
        if last is not None and last <= first:
            continue
        drawn = None if last is None else (plan.drawn(first), plan.drawn(last))
        for number, source in enumerate(plan.sources):
            weight = (before[number] / GRID, after[number] / GRID)
            if drawn is None:
                lines.append(Line(stage, source.name, first, None, weight, *[None] * 7))
            else:
                lines.append(
                    _line(plan, source, stage, (first, last), weight, (int(drawn[0][number]), int(drawn[1][number])))
                )
    return lines


def summary(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: its sources, its stages, and where sources run out."""
    sources = {
        s.name: {
            "documents": s.index.documents,
            "predictions": s.index.predictions,
            "rows": s.index.rows,
            "fill": s.index.kept / (s.index.rows * plan.seq_len),
            "padding": s.index.padding,
            "dropped": s.index.dropped,
        }
        for s in plan.sources
    }
    exhausted = () if plan.resolved is None else plan.resolved.exhausted
    return {
        "plan": plan.hash,
        "limit": plan.limit,
        "sources": sources,
        "stages": [asdict(line) for line in table(plan)],
        "exhausted": [{"source": plan.names[e.source], "row": e.row, "stage": e.stage} for e in exhausted],
    }


def _stages(plan: Plan) -> list[tuple[int, int | None, np.ndarray, np.ndarray]]:
    """(first row, row after the last, weights at the beginning, at the end) of every stage, within the run."""
    ends = [n for n in (plan.horizon.rows, plan.limit) if n is not None]
    end = min(ends) if ends else None
    if plan.resolved is None:
        rows = np.array([source.index.rows for source in plan.sources])
        share = rows / rows.sum() * GRID
        return [(0, end, share, share)]
    return [
        (
            span.first,
            end if span.last is None else span.last if end is None else min(span.last, end),
            span.before if span.ramp else span.weights,
            span.weights,
        )
        for span in plan.resolved.spans
    ]


def _line(
    plan: Plan,
    source: Source,
    stage: int,
    rows: tuple[int, int | None],
    weight: tuple[float, float],
    drawn: tuple[int, int],
) -> Line:
    index, count = source.index, drawn[1] - drawn[0]
    fresh = max(0, min(drawn[1], index.rows) - drawn[0])
    tokens = round(count * index.kept / index.rows)
    return Line(
        stage=stage,
        source=source.name,
        first_row=rows[0],
        last_row=rows[1],
        weight=weight,
        rows=count,
        tokens=tokens,
        padding=count * plan.seq_len - tokens,
        epochs=count / index.rows,
        epochs_so_far=drawn[1] / index.rows,
        unique=fresh / count if count else 1.0,
        dropped=round(count * index.dropped / index.rows),
    )
