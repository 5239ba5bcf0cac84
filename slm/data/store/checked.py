"""A file that is read in verified blocks.

Every block has a CRC-32. It is compared when the block is first touched, so a flipped bit is an error that
names the file and the bytes, never a wrong token, and a file of terabytes costs nothing to open. 64 KiB
blocks: a row of 2,048 tokens that lies alone in its block costs one such check, not a megabyte's.

A file may stand for a remote one: its blocks arrive when they are touched. What the local copy holds needs
no bookkeeping, because a block that isn't there yet fails its checksum just as a damaged one does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from slm.config.errors import RunError

BLOCK = 1 << 16
"""Bytes per checksum."""

Fetch = Callable[[int, int], bytes]
"""Bytes [start, end) of the original of a file."""


class CheckedFile:
    """Bytes [offset, offset + size) of a file, memory-mapped; ``crcs`` has a CRC-32 for every block of them.

    ``fetch`` brings bytes of the original, for a local copy that fills as it is read.
    """

    def __init__(self, path: Path, size: int, crcs: np.ndarray, *, offset: int = 0, fetch: Fetch | None = None) -> None:
        self.path, self.size, self.offset, self.crcs = path, size, offset, crcs
        self._fetch = fetch
        self._checked = bytearray(len(crcs))
        mode = "r" if fetch is None else "r+"
        self._bytes: np.ndarray = np.empty(0, np.uint8)
        if size:  # as a plain array: slices of a np.memmap cost five times as much
            self._bytes = np.memmap(path, np.uint8, mode, offset=offset, shape=(size,)).view(np.ndarray)  # type: ignore[call-overload]

    def view(self, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop), uint8. Raises `RunError` naming the file and the block that is damaged."""
        if stop > start:
            first, last = start // BLOCK, (stop - 1) // BLOCK
            checked = self._checked
            if not checked[first] or (last > first and not all(checked[first : last + 1])):
                for block in range(first, last + 1):
                    if not checked[block]:
                        self._check(block)
        return self._bytes[start:stop]

    def verify(self) -> None:
        """Check every block again. Raises `RunError` at the first fault."""
        self._checked = bytearray(len(self.crcs))
        for block in range(len(self.crcs)):
            self._check(block)

    def _check(self, block: int) -> None:
        start = block * BLOCK
        raw = self._bytes[start : start + BLOCK]
        expected = int(self.crcs[block])
        if zlib.crc32(raw.data) != expected:
            if self._fetch is not None:
                self._bring(block)
            if zlib.crc32(raw.data) != expected:
                raise RunError(
                    f"{self.path}: block {block} (bytes {self.offset + start} to {self.offset + start + len(raw)}) differs "
                    f"from its checksum: the file was damaged after it was written. Remove the store and make it again."
                )
        self._checked[block] = 1

    def _bring(self, block: int) -> None:
        """Fetch a block and its neighbours that stand in the same stretch of 4 MiB."""
        assert self._fetch is not None
        stretch = (1 << 22) // BLOCK
        first = block // stretch * stretch
        start, stop = first * BLOCK, min((first + stretch) * BLOCK, self.size)
        raw = self._fetch(self.offset + start, self.offset + stop)
        if len(raw) != stop - start:
            raise RunError(
                f"{self.path}: the original gave {len(raw)} bytes instead of {stop - start} from byte {start} on: "
                f"it is shorter than its manifest says."
            )
        self._bytes[start:stop] = np.frombuffer(raw, np.uint8)


class Checksummer:
    """CRC-32 of every ``block`` bytes of what comes in pieces."""

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block
        self._done, self._open, self._filled = list[int](), 0, 0

    def update(self, raw: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(raw)
        while len(view):
            take = min(self.block - self._filled, len(view))
            self._open = zlib.crc32(view[:take], self._open)
            self._filled += take
            view = view[take:]
            if self._filled == self.block:
                self._done.append(self._open)
                self._open = self._filled = 0

    def finish(self) -> np.ndarray:
        """The checksums, little-endian u32."""
        return np.array(self._done + ([self._open] if self._filled else []), dtype="<u4")


def checksums(chunks: Iterable[bytes] | Iterator[bytes]) -> np.ndarray:
    """CRC-32 of every block of the joined chunks, little-endian u32."""
    summer = Checksummer()
    for chunk in chunks:
        summer.update(chunk)
    return summer.finish()


def blocks_of(size: int) -> int:
    """Number of blocks of ``size`` bytes."""
    return -(-size // BLOCK)
