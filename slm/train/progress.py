"""What a person sees while a model trains: a live table on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table


class TrainProgress(Protocol):
    """Receives what the trainer does."""

    def start(self, title: str, first_step: int, total_steps: int) -> None: ...
    def update(self, record: dict[str, Any]) -> None:
        """A training or evaluation record, as written to metrics.jsonl."""

    def say(self, text: str) -> None:
        """A sentence: resumed from, a warning."""

    def close(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, title: str, first_step: int, total_steps: int) -> None: ...
    def update(self, record: dict[str, Any]) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """One plain line per record: for log files and pipes."""

    def __init__(self, console: Console) -> None:
        self.console, self.clock = console, Clock()

    def start(self, title: str, first_step: int, total_steps: int) -> None:
        self.clock.start(first_step, total_steps)
        self.console.print(title, markup=False)

    def update(self, record: dict[str, Any]) -> None:
        self.clock.see(record)
        cells = " | ".join(f"{name} {value}" for name, value in cells_of(record, self.clock))
        self.console.print(
            f"step {record['step']}/{self.clock.total} | {cells}", markup=False, highlight=False, soft_wrap=True
        )

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None: ...


class Display:
    """A bar and a table that stay in place."""

    def __init__(self, console: Console) -> None:
        self.console, self.clock = console, Clock()
        self.bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("steps"),
            console=console, expand=True,
        )  # fmt: skip
        self.cells: dict[str, str] = {}
        self.live: Live | None = None

    def start(self, title: str, first_step: int, total_steps: int) -> None:
        self.clock.start(first_step, total_steps)
        self.task = self.bar.add_task(title, total=total_steps, completed=first_step)
        self.live = Live(self._view(), console=self.console, refresh_per_second=4)
        self.live.start()

    def update(self, record: dict[str, Any]) -> None:
        self.clock.see(record)
        self.cells |= dict(cells_of(record, self.clock))
        self.bar.update(self.task, completed=record["step"])
        if self.live is not None:
            self.live.update(self._view())

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _view(self) -> Group:
        table = Table.grid(padding=(0, 3))
        names, values = list(self.cells), list(self.cells.values())
        for i in range(0, len(names), 4):
            table.add_row(
                *(f"[dim]{n}[/] [bold]{v}[/]" for n, v in zip(names[i : i + 4], values[i : i + 4], strict=True))
            )
        return Group(self.bar, table)


class Clock:
    """Time to go, from the pace of this process."""

    def __init__(self) -> None:
        self.total = self.first = self.step = 0
        self.began = time.monotonic()

    def start(self, first: int, total: int) -> None:
        self.first = self.step = first
        self.total, self.began = total, time.monotonic()

    def see(self, record: dict[str, Any]) -> None:
        self.step = record["step"]

    @property
    def eta(self) -> str:
        done = self.step - self.first
        if not done:
            return "?"
        left = (time.monotonic() - self.began) / done * (self.total - self.step)
        return (
            f"{int(left // 3600)}h{int(left % 3600 // 60):02d}m"
            if left >= 3600
            else f"{int(left // 60)}m{int(left % 60):02d}s"
        )


def cells_of(record: dict[str, Any], clock: Clock) -> list[tuple[str, str]]:
    """The figures of a record as (name, text)."""
    if record["kind"] == "eval":
        return [("held-out bits/byte", f"{record['heldout_bpb']:.4f}")]
    cells = [
        *(
            (name, f"{record[key]:.4f}")
            for name, key in (("loss", "loss"), ("bits/byte", "bpb"))
            if record[key] is not None
        ),
        ("tokens/s", f"{record['tokens_per_s']:,.0f}"),
        ("tokens/param", f"{record['tokens_per_param']:.3g}"),
        ("lr", f"{record['lr']:.2e}"),
        ("grad norm", f"{record['grad_norm']:.3f}"),
        ("ETA", clock.eta),
    ]
    if record["mfu_causal"] is not None:
        cells.append(("MFU", f"{record['mfu_causal']:.1%}"))
    if record["skipped"]:
        cells.append(("skipped steps", str(record["skipped"])))
    return cells


def progress_for(console: Console) -> TrainProgress:
    """The display that fits where the output goes."""
    return Display(console) if console.is_terminal else Lines(console)
