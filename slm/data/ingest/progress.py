"""What a person sees while a store is made: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

EVERY_SECONDS = 10.0


class Shown(AbstractContextManager["Shown"]):
    """Documents/s, tokens/s, bytes of input and the time that is left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
                TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
        self._task: TaskID | None = None
        self._name, self._total, self._read = "", 0, 0
        self._documents = self._tokens = self._text = 0
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def stage(self, name: str, total_bytes: int = 0) -> None:
        """A stage begins."""
        self._name, self._total, self._read = name, total_bytes, 0
        self._documents = self._tokens = self._text = 0
        self._began = self._spoke = time.monotonic()
        if self.bar:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self._task = self.bar.add_task(name, total=total_bytes or None, speed="")
        else:
            self.console.print(f"  {name}", markup=False)

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Documents were tokenised."""
        self._documents += documents
        self._tokens += tokens
        self._text += text_bytes
        self._show()

    def read(self, input_bytes: int) -> None:
        """That much of the input is done."""
        self._read += input_bytes
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        seconds = max(now - self._began, 1e-9)
        speed = f"{self._documents / seconds:,.0f} documents/s, {self._tokens / seconds:,.0f} tokens/s"
        # Plain text is as long as its file: it moves the bar within a unit. Compressed units count when they are done.
        done = min(max(self._read, self._text), self._total) if self._total else 0
        if self.bar and self._task is not None:
            self.bar.update(self._task, completed=done, speed=speed)
        elif now - self._spoke > EVERY_SECONDS:
            self._spoke = now
            left = f", {seconds * (self._total - done) / done:,.0f} s left" if done and self._total else ""
            share = f"{done / self._total:.0%}" if self._total else f"{self._text:,} bytes"
            self.console.print(f"  {self._name}: {share}, {self._documents:,} documents, {speed}{left}", markup=False)
