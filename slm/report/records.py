"""Reading a run's directory from outside: its records as they grow, its config and summary.

Any of these files may be damaged: by a disk that was full, an editor, a copy that was cut short. What can't be read is then left out and
named, so that who watches several runs still sees the others; a report refuses what it can't do without (`RunFiles.check`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from slm.config.errors import RunError

METRICS, CONFIG, SUMMARY = "metrics.jsonl", "config.yaml", "summary.json"
SECTIONS = ("model", "tokenizer", "data", "train")
"""The sections of a config that define the experiment (slm/run.py)."""
NEEDED = {"train": ("step", "tokens"), "eval": ("step", "heldout_bpb")}
"""The kinds of records that are drawn, and what they can't be without."""
NUMBERS = ("tokens_per_param", "loss", "bpb", "lr", "grad_norm", "tokens_per_s", "mfu_causal", "memory_bytes")
"""What else must be a number, or null, where it is there."""
COUNTED = ("seconds", "skipped")
"""And what can't be null."""
MEND = {
    METRICS: "See to it that it can be read.",
    CONFIG: "Each of the run's checkpoints (checkpoints/step-*) has a copy of it: put that in its place.",
    SUMMARY: "Remove it, and give the run's `slm train` command again: that evaluates the run anew and writes it.",
}


class Records:
    """The records of a ``metrics.jsonl`` that another process may be writing, or cutting back.

    A trainer that resumes replaces the file by a shorter one: it is then read anew. Records are yielded once their
    line is whole. ``poll`` reads only what was added since.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.train: list[dict[str, Any]] = []
        self.eval: list[dict[str, Any]] = []
        self.damaged = 0
        """Lines that are no records, and were passed over."""
        self._file: tuple[int, int] = (0, 0)
        """Which file was read (its inode), and up to where."""

    def poll(self) -> bool:
        """Read what is new; returns whether anything changed. No file yet is no records yet."""
        try:
            with self.path.open("rb") as file:
                inode, at = os.fstat(file.fileno()).st_ino, self._file[1]
                if inode != self._file[0] or file.seek(0, 2) < at:
                    at = 0
                    self.train, self.eval, self.damaged = [], [], 0
                file.seek(at)
                new = file.read()
        except FileNotFoundError:
            changed = bool(self.train or self.eval)
            self.train, self.eval, self.damaged, self._file = [], [], 0, (0, 0)
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
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            self.damaged += 1
            return
        records = {"train": self.train, "eval": self.eval}.get(record["kind"])
        if records is None:
            return  # of a kind that isn't drawn
        _restore_nan(record)
        if not _is_whole(record):
            self.damaged += 1
            return
        while records and records[-1]["step"] >= record["step"]:  # made again by a session that went back
            records.pop()
        records.append(record)


def _restore_nan(record: dict[str, Any]) -> None:
    """Of an evaluation: null is how a figure is written that is not a number."""
    if record.get("heldout_bpb", 0.0) is None:
        record["heldout_bpb"] = math.nan
    sources = record.get("heldout_bpb_by_source")
    if isinstance(sources, dict):
        record["heldout_bpb_by_source"] = {name: math.nan if v is None else v for name, v in sources.items()}


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a record has what is drawn of it, as numbers."""
    needed = (*NEEDED[record["kind"]], *(key for key in COUNTED if key in record))
    if not isinstance(record.get("step"), int) or not all(_is_number(record.get(key)) for key in needed):
        return False
    sources = record.get("heldout_bpb_by_source", {})
    return isinstance(sources, dict) and all(
        value is None or _is_number(value) for value in (*(record.get(key) for key in NUMBERS), *sources.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class RunFiles:
    """A run's directory. ``config`` and ``summary`` are read anew by `refresh`; the summary is None until it is finished."""

    def __init__(self, run_dir: Path) -> None:
        self.dir = run_dir
        self.records = Records(run_dir / METRICS)
        self.config: dict[str, Any] = {}
        self.config_text = ""
        self.summary: dict[str, Any] | None = None
        self.problems: dict[str, str] = {}
        """What is wrong with which file, in a sentence."""
        self.refresh()

    def refresh(self) -> None:
        """Read what changed on the disk. A file that is damaged counts as not there, and `problems` says what is wrong with it."""
        self.problems = {}
        try:
            self.records.poll()
        except OSError as error:
            self._wrong(METRICS, f"can't be read: {error.strerror or error}")
        self.config_text = self._text(CONFIG) or ""
        self.config = self._mapping(CONFIG, _yaml) or {}
        self.summary = self._mapping(SUMMARY, json.loads)
        for section in SECTIONS:
            if not isinstance(self.config.get(section, {}), dict):
                self._wrong(CONFIG, f"is damaged: its '{section}' is no mapping")
                self.config = {}
        if self.summary is not None and not _is_summary(self.summary):
            self._wrong(SUMMARY, "is damaged: it doesn't say the run's steps and parameters")
            self.summary = None

    def check(self) -> None:
        """Raise `RunError` if one of the files is damaged. Single lines of the log may be: they are left out."""
        for file, problem in self.problems.items():
            raise RunError(f"{problem}. {MEND[file]}")

    @property
    def notes(self) -> list[str]:
        """What is wrong with the files, a sentence each without its full stop; single lines of the log too."""
        n = self.records.damaged
        lines = f"{self.dir / METRICS}: {n} damaged line{'s' if n > 1 else ''} passed over"
        return [*self.problems.values(), *([lines] if n else [])]

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.dir.name)

    @property
    def params(self) -> int | None:
        """Stored parameters: the summary's, else what the last record's tokens per parameter say."""
        if self.summary:
            return int(self.summary["params"]["unique"])
        for record in self.records.train[-1:]:
            if record.get("tokens_per_param"):
                return round(record["tokens"] / record["tokens_per_param"])
        return None

    def _wrong(self, file: str, what: str) -> None:
        self.problems[file] = f"{self.dir / file} {what}"

    def _text(self, file: str) -> str | None:
        """A file's text; None if there is none, or none that can be read."""
        try:
            return (self.dir / file).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            self._wrong(file, "is damaged: it is no text in UTF-8")
        except OSError as error:
            self._wrong(file, f"can't be read: {error.strerror or error}")
        return None

    def _mapping(self, file: str, parse: Callable[[str], Any]) -> dict[str, Any] | None:
        """A file that holds a mapping; None if it is not there or holds none."""
        text = self._text(file)
        if text is None:
            return None
        try:
            value = parse(text)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            self._wrong(file, f"is damaged: {_where(error)}")
            return None
        if isinstance(value, dict):
            return value
        self._wrong(file, f"is damaged: it holds no mapping but {'nothing' if value is None else type(value).__name__}")
        return None


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _where(error: Exception) -> str:
    """Where in a file a parser gave up, in a line."""
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at line {error.lineno}, column {error.colno} ({error.msg})"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"no YAML at line {mark.line + 1}, column {mark.column + 1} ({getattr(error, 'problem', '')})"


def _is_summary(summary: dict[str, Any]) -> bool:
    """Whether a summary has what every summary has."""
    params, bpb = summary.get("params"), summary.get("bpb")
    return (
        isinstance(summary.get("steps"), int)
        and isinstance(params, dict)
        and _is_number(params.get("unique"))
        and (bpb is None or _is_number(bpb))
    )
