"""metrics.jsonl: one JSON object per logged step or evaluation, written by the trainer itself. What is not finite is null.

A resumed run first cuts the log back to its checkpoint, so that every step is there once: no gap, no repeat. A line that is damaged is
left out, and that is said; the last one may have been cut short by a kill, which loses nothing that a checkpoint relies on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm.config.errors import RunError
from slm.config.files import replace_durably, sync


class MetricsLog:
    """Appends records to ``metrics.jsonl``; records at or before the resumed step are kept."""

    def __init__(self, path: Path, resumed_at: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        records, damaged = _read(path)
        if damaged:
            say(
                f"{path}: line {', '.join(map(str, damaged))} can't be read and is left out from here on; the records around it stay."
            )
        write_metrics(path, [record for record in records if record["step"] <= resumed_at])
        self._file = path.open("a", buffering=1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Raises `RunError` when the disk is full."""
        try:
            self._file.write(_line(record))
        except OSError as error:
            raise RunError(
                f"Can't write {self.path}: {error.strerror}. Checkpoints written before stay valid."
            ) from None

    def flush(self) -> None:
        """Wait until all records are on the disk: before a checkpoint that relies on them."""
        try:
            sync(self._file)
        except OSError as error:
            raise RunError(
                f"Can't write {self.path}: {error.strerror}. Checkpoints written before stay valid."
            ) from None

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file."""
    return _read(path)[0]


def write_metrics(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a metrics file, whole or not at all."""
    replace_durably(path, "".join(map(_line, records)).encode())


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON doesn't have."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Records, and the numbers of lines that are none; of those, not a last one that a kill cut short."""
    raw = path.read_bytes() if path.exists() else b""
    records, damaged = [], []
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        try:
            record = json.loads(line)
            whole = isinstance(record["step"], int)
        except (ValueError, KeyError, TypeError, IndexError):
            whole = False
        if whole:
            records.append(record)
        elif line.endswith(b"\n"):
            damaged.append(number)
    return records, damaged
