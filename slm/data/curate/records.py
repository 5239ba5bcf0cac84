"""Records of small or large files that are not the corpus: evaluation sets, token columns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slm.config.errors import ConfigError, RunError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
KINDS = (".jsonl", ".json", ".parquet", ".txt")
"""Kinds of files that `records` reads; all but parquet may be compressed (.gz, .zst, .zstd)."""


def kind_of(path: Path) -> tuple[str, str | None]:
    """One of `KINDS` and arrow's name of the compression. Raises `ConfigError` for other files."""
    compression = COMPRESSIONS.get(path.suffix)
    kind = Path(path.stem).suffix if compression else path.suffix
    if kind not in KINDS or (kind == ".parquet" and compression):
        names = ", ".join(KINDS)
        raise ConfigError(
            f"{path}: unknown kind of file. Read are {names}, the first two and .txt also with .gz or .zst."
        )
    return kind, compression


def is_readable(path: Path) -> bool:
    """Whether `records` reads files of this name."""
    try:
        kind_of(path)
    except ConfigError:
        return False
    return True


def records(path: Path, *, json_lines: bool = False) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) for every line (.jsonl, .txt), row (.parquet), or item of the one list (.json).

    A line of text is the record ``{"text": line}``; blank lines are skipped. ``json_lines``: ``.json`` has a record a line, too.
    Memory doesn't grow with the file, except for .json. Raises `RunError` that names file and line.
    """
    kind, compression = kind_of(path)
    try:
        if kind == ".parquet":
            yield from _rows(path)
            return
        with io.BufferedReader(pa.input_stream(str(path), compression=compression), 1 << 20) as file:
            if kind == ".json" and not json_lines:
                whole = json.loads(file.read())
                for i, record in enumerate(whole if isinstance(whole, list) else [whole]):
                    yield f"{path}, item {i + 1}", record
                return
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield f"{path}, line {number}", _line(raw, kind, f"{path}, line {number}")
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RunError(
            f"{path}: can't be read to its end ({error}). It is damaged, or not what its name says."
        ) from None


def _line(raw: bytes, kind: str, where: str) -> Any:
    try:
        return {"text": raw.decode("utf-8").rstrip("\r\n")} if kind == ".txt" else json.loads(raw)
    except ValueError as error:
        raise RunError(
            f"{where}: not valid {'UTF-8' if kind == '.txt' else 'JSON'} ({error}). Mend the file."
        ) from None


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
