"""Reading a run's directory from outside: its records as they grow, its config and summary, and which runs there are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from slm.config.errors import ConfigError, suggest

METRICS, CONFIG, SUMMARY = "metrics.jsonl", "config.yaml", "summary.json"


class Records:
    """The records of a ``metrics.jsonl`` that another process may be writing, or cutting back.

    A trainer that resumes replaces the file by a shorter one: it is then read anew. Records are yielded once their
    line is whole. ``poll`` reads only what was added since.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.train: list[dict[str, Any]] = []
        self.eval: list[dict[str, Any]] = []
        self._file: tuple[int, int] = (0, 0)
        """Which file was read (its inode), and up to where."""

    def poll(self) -> bool:
        """Read what is new; returns whether anything changed. No file yet is no records yet."""
        try:
            with self.path.open("rb") as file:
                inode, at = os.fstat(file.fileno()).st_ino, self._file[1]
                if inode != self._file[0] or file.seek(0, 2) < at:
                    at = 0
                    self.train, self.eval = [], []
                file.seek(at)
                new = file.read()
        except FileNotFoundError:
            changed = bool(self.train or self.eval)
            self.train, self.eval, self._file = [], [], (0, 0)
            return changed
        whole = new[: new.rfind(b"\n") + 1]
        changed = bool(whole) or inode != self._file[0]
        self._file = (inode, at + len(whole))
        for line in whole.splitlines():
            self._take(line)
        return changed

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            records = {"train": self.train, "eval": self.eval}[record["kind"]]
            step = record["step"]
        except (ValueError, KeyError, TypeError):
            return  # damaged, or of a kind that isn't drawn
        while records and records[-1]["step"] >= step:  # made again by a session that went back
            records.pop()
        records.append(record)


class RunFiles:
    """A run's directory. ``config`` and ``summary`` are read anew by `refresh`; the summary is None until it is finished."""

    def __init__(self, run_dir: Path) -> None:
        self.dir = run_dir
        self.records = Records(run_dir / METRICS)
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what changed on the disk."""
        self.records.poll()
        self.config = yaml.load(_text(self.dir / CONFIG), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
        try:
            self.summary = json.loads(_text(self.dir / SUMMARY) or "null")
        except ValueError:
            self.summary = None  # being written: it is there the next time

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.dir.name)

    @property
    def params(self) -> int | None:
        """Stored parameters: the summary's, else what the last record's tokens per parameter say."""
        if self.summary and "params" in self.summary:
            return int(self.summary["params"]["unique"])
        for record in self.records.train[-1:]:
            if record.get("tokens_per_param"):
                return round(record["tokens"] / record["tokens_per_param"])
        return None


def find_run(given: str) -> Path:
    """The directory of a run, given as a path or by its name under ``runs/``. Raises `ConfigError` with the runs there."""
    for place in (Path(given), Path("runs") / given):
        if any((place / name).is_file() for name in (METRICS, CONFIG)):
            return place
    known = [str(p.parent.relative_to("runs")) for p in sorted(Path("runs").glob(f"**/{CONFIG}"))]
    raise ConfigError(
        f"There is no run {given!r}: neither that directory nor runs/{given} holds a {METRICS} or a {CONFIG}. "
        + (suggest(given, known) if known else "There are no runs under runs/ here: `slm train RECIPE` makes one.")
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
