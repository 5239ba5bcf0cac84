"""A frame of `slm watch`: for each run a line, a bar and its figures; then curves that all runs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slm.report.page import si, span
from slm.watch.plot import COLOURS, Series, number, plot
from slm.watch.state import Snapshot, Watched

STYLES = {"running": "bold green", "finished": "bold blue", "stalled": "bold red", "interrupted": "bold yellow"}
BESIDE = 96
"""Columns from which two charts stand side by side."""
BAR = 28


def frame(runs: Sequence[Watched], now: Sequence[Snapshot], width: int, height: int) -> RenderableType:
    """All of it, ``width`` columns wide and, where that is possible, at most ``height`` lines high."""
    heads: list[RenderableType] = []
    for i, snapshot in enumerate(now):
        heads += [
            _title(snapshot, i if len(now) > 1 else None, width),
            *_problem(snapshot),
            _bar(snapshot),
            *_figures(snapshot, width),
            Text(),
        ]
    across = 2 if width >= BESIDE else 1
    down = -(-4 // across)
    free = height - sum(5 + bool(snapshot.problem) for snapshot in now) - 1
    rows = max(4, min(10, free // down - 2))
    return Group(*heads, _charts(runs, width // across - (across - 1), rows, across))


def _title(now: Snapshot, index: int | None, width: int) -> RenderableType:
    left = Text(no_wrap=True, overflow="ellipsis")
    if index is not None:
        left.append("━━ ", style=COLOURS[index % len(COLOURS)])
    left.append(now.name, style="bold")
    for text in (now.identity, f"{si(now.params)} parameters" if now.params else None):
        if text:
            left.append(f"  {text}", style="dim")
    line = Table.grid(expand=False, padding=0)
    line.add_column(width=max(20, width - 38))
    line.add_column(width=38, justify="right")
    line.add_row(left, Text(state_text(now), style=STYLES[now.state]))
    return line


def _problem(now: Snapshot) -> list[Text]:
    """A line that says what is wrong with the run's files, cut off at the right; `slm watch --json` has all of it."""
    return [Text(now.problem, style="red", no_wrap=True, overflow="ellipsis")] if now.problem else []


def state_text(now: Snapshot) -> str:
    """The state as a reader wants it: with how long nothing has happened, where that matters."""
    if now.state == "stalled":
        return f"stalled: no record for {span(now.quiet)}"
    if now.state == "interrupted":
        return f"interrupted {span(now.quiet)} ago"
    return now.state


def _bar(now: Snapshot) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    of = f" / {now.total_steps:,}" if now.total_steps else ""
    text = f"step {now.step:,}{of}   {si(now.tokens)} tokens"
    if now.tokens_per_param is not None:
        text += f" ({now.tokens_per_param:.3g} per parameter)"
    if now.state == "finished":
        text += f"   trained in {span(now.seconds)}"
    elif now.eta is not None:
        text += f"   ETA {span(now.eta)}"
    done = min(1.0, now.step / now.total_steps) if now.total_steps else 0.0
    line.add_row(
        ProgressBar(total=1.0, completed=done, width=BAR), Text(f"{done:4.0%}" if now.total_steps else ""), text
    )
    return line


def _figures(now: Snapshot, width: int) -> list[Text]:
    """The newest figures, as many to a line as fit."""
    given: list[tuple[str, str | None]] = [
        ("loss", _maybe(now.loss, "{:.4f}")),
        ("bits/byte", _maybe(now.bpb, "{:.4f}")),
        ("held-out", _heldout(now)),
        ("final", _maybe(now.final_bpb, "{:.4f}")),
        ("lr", _maybe(now.lr, "{:.2e}")),
        ("grad norm", _maybe(now.grad_norm, "{:.3f}")),
        ("tokens/s", _maybe(now.tokens_per_s, "{:,.0f}")),
        ("MFU", _maybe(now.mfu, "{:.1%}")),
        ("skipped steps", str(now.skipped) if now.skipped else None),
        ("checkpoint", _checkpoint(now)),
    ]
    lines = [Text()]
    for name, value in given:
        if value is None:
            continue
        cell = Text.assemble((f"{name} ", "dim"), (value, "bold"))
        if lines[-1].cell_len and lines[-1].cell_len + cell.cell_len + 3 > width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1].cell_len else "").append_text(cell)
    return lines


def _maybe(value: float | None, how: str) -> str | None:
    return None if value is None else how.format(value)


def _heldout(now: Snapshot) -> str | None:
    if now.heldout_bpb is None:
        return None
    best = (
        ""
        if now.best_heldout_bpb == now.heldout_bpb
        else f" (best {now.best_heldout_bpb:.4f} at step {now.best_step:,})"
    )
    return f"{now.heldout_bpb:.4f}{best}"


def _checkpoint(now: Snapshot) -> str | None:
    if now.checkpoint_step is None:
        return None
    return f"step {now.checkpoint_step:,}, {span(now.checkpoint_age)} ago"


def _charts(runs: Sequence[Watched], width: int, rows: int, across: int) -> RenderableType:
    end = f"{number(max((r['step'] for run in runs for r in run.files.records.train[-1:]), default=0))} steps"
    several = len(runs) > 1

    def curves(key: str) -> list[Series]:
        return [_series(run.files.records.train, key, i) for i, run in enumerate(runs)]

    heldout = [
        _series(run.files.records.eval, "heldout_bpb", i if several else 1, dotted=not several)
        for i, run in enumerate(runs)
    ]
    charts: list[Callable[[], Text]] = [
        lambda: plot("loss, nats per token", curves("loss"), width, rows, end),
        lambda: (
            plot("held-out bits per byte", heldout, width, rows, end)
            if several
            else plot("bits per byte: training, held-out in orange", [*curves("bpb"), *heldout], width, rows, end)
        ),
        lambda: plot("learning rate", curves("lr"), width, rows, end),
        lambda: plot("gradient norm", curves("grad_norm"), width, rows, end),
    ]
    grid = Table.grid(padding=(0, 1))
    for i in range(0, len(charts), across):
        grid.add_row(*(chart() for chart in charts[i : i + across]))
    return grid


def _series(records: list[dict[str, Any]], key: str, colour: int, dotted: bool = False) -> Series:
    there = [r for r in records if isinstance(r.get(key), int | float)]
    return Series([r["step"] for r in there], [r[key] for r in there], colour, dotted)
