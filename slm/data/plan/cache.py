"""Arrays that are computed once, written once, and checked whenever they are read.

::

    <cache>/<key>/
      header.json      what the arrays are made from, their types and lengths; has a checksum of its own
      NAME.bin         one array, little-endian
      checks.bin       u32 CRC-32 of every 4 KiB block of every array

A directory is written beside its place, flushed and renamed, so what exists is whole. Opening it reads the
header and the checks; a block of an array is checked when it is first touched, so that opening costs nothing
and a flipped bit is never believed. What is found damaged at opening is made again; what is found damaged
later stops the run with a clear error and is made again at the next start.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from slm.config.errors import RunError
from slm.config.files import sync, sync_directory, write_durably
from slm.data.store.checked import Checksummer

FORMAT = 1
BLOCK = 1 << 12
"""Bytes per checksum: a page, because rows are read in random order and a first touch reads a whole block."""

_MARK = "damaged"
Say = Callable[[str], None]


class Damaged(RunError):
    """A cache that is not what was written."""


class Array:
    """A one-dimensional array whose blocks are checked when they are first read."""

    def __init__(self, data: np.ndarray, checks: np.ndarray | None = None, path: Path | None = None) -> None:
        self.data, self._checks, self._path = data, checks, path
        self._shift = (BLOCK // data.dtype.itemsize).bit_length() - 1
        self._seen = None if checks is None else np.zeros(len(checks), dtype=bool)

    def __len__(self) -> int:
        return len(self.data)

    def read(self, first: int, last: int) -> np.ndarray:
        """A view of the items [first, last)."""
        if self._seen is not None and last > first:
            blocks = slice(first >> self._shift, (last - 1 >> self._shift) + 1)
            if not self._seen[blocks].all():
                self._check(np.arange(blocks.start, blocks.stop))
        return self.data[first:last]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """A copy of the items at ``indices``."""
        if self._seen is not None:
            blocks = indices >> self._shift
            if not self._seen[blocks].all():
                self._check(np.unique(blocks))
        return self.data[indices]

    def verify(self) -> None:
        """Check every block. Raises `Damaged` at the first fault."""
        if self._seen is not None:
            self._seen[:] = False
            self._check(np.arange(len(self._seen)))

    def _check(self, blocks: np.ndarray) -> None:
        assert self._seen is not None
        assert self._checks is not None
        raw = self.data.view(np.uint8).data
        for block in blocks[~self._seen[blocks]].tolist():
            if zlib.crc32(raw[block * BLOCK : (block + 1) * BLOCK]) != int(self._checks[block]):
                with suppress(OSError):  # a reader may have no right to write here
                    self._path.with_name(_MARK).touch()  # type: ignore[union-attr]
                raise Damaged(
                    f"{self._path}: bytes {block * BLOCK} to {min((block + 1) * BLOCK, len(raw))} differ from their checksum: the "
                    f"file was damaged after it was written. Nothing of it was used. Start again: it is made anew from the "
                    f"store (if not, remove {self._path.parent if self._path else ''})."
                )
            self._seen[block] = True


class Arrays:
    """What `Writer` wrote: ``info`` of its maker, and the arrays by name."""

    def __init__(self, info: dict[str, Any], arrays: dict[str, Array]) -> None:
        self.info, self._arrays = info, arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def verify(self) -> None:
        """Check every block of every array. Raises `Damaged` at the first fault."""
        for array in self._arrays.values():
            array.verify()


class Writer:
    """Takes arrays piece by piece, in memory or (given a folder) on disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._parts: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, Any] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._checks: dict[str, Checksummer] = {}

    def append(self, name: str, part: np.ndarray) -> None:
        """Add items at the end of an array; its first part says its type (1, 2, 4, 8 or 16 bytes per item)."""
        dtype = self._dtypes.setdefault(name, part.dtype)
        part = np.ascontiguousarray(part, dtype=dtype)
        if self._folder is None:
            self._parts.setdefault(name, []).append(part)
            return
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.bin").open("wb")
            self._checks[name] = Checksummer(BLOCK)
        raw = part.view(np.uint8).data if len(part) else memoryview(b"")
        self._files[name].write(raw)
        self._checks[name].update(raw)

    def finish(self, made_from: dict[str, Any], info: dict[str, Any]) -> Arrays | None:
        """Flush everything to disk; in memory, return the arrays."""
        if self._folder is None:
            return Arrays(info, {name: Array(np.concatenate(parts)) for name, parts in self._parts.items()})
        entries, checks = {}, []
        for name, file in sorted(self._files.items()):  # as the header lists them
            entries[name] = {"dtype": _spell(self._dtypes[name]), "bytes": file.tell()}
            checks.append(self._checks[name].finish())
            sync(file)
            file.close()
        raw_checks = np.concatenate(checks).tobytes()
        body = {"made_from": made_from, "info": info, "arrays": entries, "checks": zlib.crc32(raw_checks)}
        write_durably(self._folder / "checks.bin", raw_checks)
        write_durably(self._folder / "header.json", _seal(body))
        sync_directory(self._folder)
        return None

    def close(self) -> None:
        """Close what `finish` would have closed."""
        for file in self._files.values():
            file.close()


def cached(
    root: Path | str | None,
    key: str,
    made_from: dict[str, Any],
    make: Callable[[Writer], dict[str, Any]],
    say: Say | None = None,
) -> Arrays:
    """The arrays that ``make`` writes: from ``root/key`` if they are there and whole, else made now.

    ``make`` fills a `Writer` and returns JSON-able information about the arrays. Several processes may call this at
    once: one makes the arrays and the others wait, or, on a file system without locks, each makes its own and the
    first one stays. Without a root everything stays in memory.

    Raises:
        RunError: the directory can't be written.
    """
    if root is None:
        writer = Writer()
        arrays = writer.finish(made_from, make(writer))
        assert arrays is not None
        return arrays
    folder = Path(root) / key
    if (found := _usable(folder, made_from, None)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(key + ".lock")) as alone:
            if (found := _usable(folder, made_from, say or _warn)) is not None:
                return found
            _make(folder, made_from, make, alone)
    except OSError as error:
        raise RunError(
            f"The plan's cache can't be written to {folder.parent} ({error.strerror or error}). Make room or set impl.data_dir to a "
            f"directory that can be written."
        ) from error
    return _open(folder, made_from)


def _usable(folder: Path, made_from: dict[str, Any], say: Say | None) -> Arrays | None:
    """The arrays of a folder, or None if they have to be made; with ``say``, tells why and clears the way."""
    if not folder.exists():
        return None
    try:
        if (folder / _MARK).exists():
            raise Damaged(f"{folder}: found damaged in an earlier run.")
        return _open(folder, made_from)
    except Damaged as error:
        if say is not None:
            say(f"{error} It is made again.")
            shutil.rmtree(folder)
        return None


def _make(folder: Path, made_from: dict[str, Any], make: Callable[[Writer], dict[str, Any]], alone: bool) -> None:
    if alone:  # nobody else is at work here, so what stands about was left by processes that died
        for leftover in folder.parent.glob(f"{folder.name}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    writer = Writer(partial)
    try:
        writer.finish(made_from, make(writer))
        partial.chmod(0o755)
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / "header.json").exists():
                raise
            # another process was first; what it wrote is the same
        sync_directory(folder.parent)
    finally:
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)


def _open(folder: Path, made_from: dict[str, Any]) -> Arrays:
    try:
        body = _unseal((folder / "header.json").read_bytes())
        raw_checks = (folder / "checks.bin").read_bytes()
        if body["made_from"] != made_from or zlib.crc32(raw_checks) != body["checks"]:
            raise ValueError("header and checks don't belong together")
        checks, arrays, at = np.frombuffer(raw_checks, dtype="<u4"), {}, 0
        for name, entry in body["arrays"].items():
            path, size, blocks = folder / f"{name}.bin", entry["bytes"], -(-entry["bytes"] // BLOCK)
            if path.stat().st_size != size:
                raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
            dtype = np.dtype([tuple(f) for f in entry["dtype"]] if isinstance(entry["dtype"], list) else entry["dtype"])
            data = np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if size else np.empty(0, dtype)
            arrays[name] = Array(data, checks[at : at + blocks], path)
            at += blocks
        return Arrays(body["info"], arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}: the plan's cache is damaged ({error}).") from error


def _seal(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"format": FORMAT, "crc32": zlib.crc32(text.encode()), "body": body}, sort_keys=True).encode()


def _unseal(raw: bytes) -> dict[str, Any]:
    sealed = json.loads(raw)
    if sealed["format"] != FORMAT or zlib.crc32(json.dumps(sealed["body"], sort_keys=True).encode()) != sealed["crc32"]:
        raise ValueError("header.json differs from its checksum")
    return sealed["body"]  # type: ignore[no-any-return]


def _spell(dtype: np.dtype[Any]) -> Any:
    return [list(f) for f in dtype.descr] if dtype.names else dtype.str


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold an advisory lock that disappears with the process. Yields False where the file system has none."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
