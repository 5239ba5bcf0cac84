"""metrics.jsonl: one JSON object per logged step or evaluation, written by the trainer itself.

A resumed run first cuts the log back to its checkpoint, so that every step is there once: no gap, no repeat.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm.config.errors import RunError
from slm.config.files import replace_durably, sync


class MetricsLog:
    """Appends records to ``metrics.jsonl``; records at or before the resumed step are kept."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        kept = [line for line in _whole_lines(path) if line["step"] <= resumed_at]
        write_metrics(path, kept)
        self._file = path.open("a", buffering=1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Raises `RunError` when the disk is full."""
        try:
            self._file.write(json.dumps(record) + "\n")
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
    return _whole_lines(path)


def write_metrics(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a metrics file, whole or not at all."""
    replace_durably(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Records up to the first line that a kill cut short."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
