"""Files with a checksum per block, and the list of them that makes a directory a checkpoint.

CRC-32 finds what disks, networks and half-finished copies do; it is no defence against somebody who wants to deceive. A block of 1 MiB
lets a reader that needs a few rows of a 10 GB file check just the blocks that they lie in, and lets an error say where the damage is.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from slm.checkpoint.layout import FORMAT, steps
from slm.config.errors import RunError
from slm.config.files import sync, write_durably

BLOCK = 1 << 20
"""Bytes that share a checksum."""
NAME = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """What is known of a file: its size in bytes and the CRC-32 of each of its blocks."""

    size: int
    crc32: list[int]

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.size, "crc32": self.crc32}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        entry = cls(given["bytes"], given["crc32"])
        if len(entry.crc32) != -(-entry.size // BLOCK):
            raise TypeError("number of checksums")
        return entry


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint. ``id``: which attempt at saving wrote it."""

    step: int
    files: dict[str, Entry]
    id: str = ""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write it into the directory, and wait until it is on the disk."""
        body = {
            "format": self.format,
            "step": self.step,
            "id": self.id,
            "files": {name: entry.to_json() for name, entry in sorted(self.files.items())},
        }
        write_durably(folder / NAME, json.dumps(body | {"self": _own_check(body)}).encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a checkpoint's manifest. Raises `RunError` naming the file if it is damaged or of an unknown format."""
        file = folder / NAME
        try:
            body = json.loads(file.read_bytes())
            known = body["format"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{file}: can't be read ({error}). {instead(folder)}") from None
        if known not in (1, FORMAT):
            raise RunError(f"{file}: checkpoint format {known!r}; this slm reads formats 1 and {FORMAT}.")
        if known > 1 and body.pop("self", None) != _own_check(body):
            raise RunError(f"{file}: damaged (its own checksum differs). {instead(folder)}")
        try:
            files = {name: Entry.from_json(entry) for name, entry in body["files"].items()}
            return cls(body["step"], files, body.get("id", ""), known)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{file}: damaged ({error!r} is missing or odd). {instead(folder)}") from None


class ChecksummedWriter:
    """Writes a file from its start to its end, and keeps the checksum of each block. Use it in a ``with``; then ask for `entry`."""

    def __init__(self, path: Path) -> None:
        self.size, self._crcs, self._crc = 0, list[int](), 0
        self._file = path.open("wb", buffering=0)  # what is written is large, and counted here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                sync(self._file)
        finally:
            self._file.close()

    def write(self, raw: memoryview | bytes) -> None:
        """Append bytes. Raises `OSError` when the disk is full."""
        view = memoryview(raw).cast("B") if len(raw) else memoryview(b"")
        while len(view):
            part = view[: BLOCK - self.size % BLOCK]
            written = self._file.write(part)  # may be less than asked for: the rest comes round again
            self._crc = zlib.crc32(part[:written], self._crc)
            self.size += written
            if self.size % BLOCK == 0:
                self._crcs.append(self._crc)
                self._crc = 0
            view = view[written:]

    @property
    def entry(self) -> Entry:
        """Size and checksums of what was written so far."""
        return Entry(self.size, [*self._crcs, self._crc] if self.size % BLOCK else list(self._crcs))


def write_checked(path: Path, parts: Iterable[memoryview | bytes]) -> Entry:
    """Write a file of some parts durably, and return its entry."""
    with ChecksummedWriter(path) as file:
        for part in parts:
            file.write(part)
    return file.entry


class CheckedFile:
    """A checkpoint's file, of which every block is held against its checksum before a byte of it is handed out.

    Blocks are read and not mapped: a failing disk is then an error that can be explained, not a killed process.
    """

    def __init__(self, folder: Path, name: str, entry: Entry) -> None:
        self.path, self.folder, self.entry = folder / name, folder, entry
        self._last: tuple[int, bytes] = (-1, b"")  # small neighbours share a block
        try:
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise RunError(f"{self.path}: can't be read ({error.strerror}). {instead(folder)}") from None
        if (found := os.fstat(self._fd).st_size) != entry.size:
            self.close()
            raise RunError(
                f"{self.path}: {found} bytes long, the manifest says {entry.size}. It is damaged at byte "
                f"{min(found, entry.size)} at the latest. {instead(folder)}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill ``target`` with the bytes from ``start`` on. Raises `RunError` naming the damaged block."""
        end = start + len(target)
        for number in range(start // BLOCK, -(-end // BLOCK)):
            block, at = self.block(number), number * BLOCK
            low, high = max(start, at), min(end, at + len(block))
            target[low - start : high - start] = memoryview(block)[low - at : high - at]

    def read(self, start: int, count: int) -> bytes:
        """``count`` bytes from ``start`` on; fewer at the end of the file."""
        target = bytearray(max(0, min(count, self.entry.size - start)))
        self.read_into(memoryview(target), start)
        return bytes(target)

    def verify(self) -> None:
        """Check every block."""
        for number in range(len(self.entry.crc32)):
            self.block(number)

    def block(self, number: int) -> bytes:
        """A block whose checksum is right."""
        if self._last[0] == number:
            return self._last[1]
        at = number * BLOCK
        want = min(BLOCK, self.entry.size - at)
        try:
            raw = os.pread(self._fd, want, at)
        except OSError as error:
            raise RunError(
                f"{self.path}: can't be read at byte {at} ({error.strerror}). {instead(self.folder)}"
            ) from None
        if len(raw) != want or zlib.crc32(raw) != self.entry.crc32[number]:
            raise RunError(
                f"{self.path}: damaged between byte {at} and {at + want} (checksum differs). {instead(self.folder)}"
            )
        self._last = (number, raw)
        return raw


def verify(path: Path) -> None:
    """Check every byte of a checkpoint. Raises `RunError` at the first fault."""
    for name, entry in Manifest.read(path).files.items():
        with CheckedFile(path, name, entry) as file:
            file.verify()


def instead(path: Path) -> str:
    """What to do about a damaged checkpoint; nothing is chosen silently."""
    if any(p.name < path.name for p in steps(path.parent)):
        return "To go on from the newest earlier one that is whole, run the same command with log.resume=latest-valid."
    return "There is no earlier checkpoint beside it."


def _own_check(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
