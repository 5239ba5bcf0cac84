"""Files that are whole or not there: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def sync(file: IO[Any]) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_durably(path: Path, raw: bytes | memoryview) -> None:
    """Write a file and wait until it is on the disk. Not atomic: for files whose name means nothing yet."""
    with path.open("wb") as file:
        file.write(raw)
        sync(file)


def replace_durably(path: Path, raw: bytes | memoryview) -> None:
    """Write a file that at any moment has either its old contents or all of the new ones."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_durably(partial, raw)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk: a file's own fsync doesn't cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on a file made for it; it ends with the process, however that ends."""
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue  # its holder removed the file while this process waited: what is locked is nobody's any more
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
