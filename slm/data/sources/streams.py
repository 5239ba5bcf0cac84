"""Bytes of a file, decompressed, and the lines in them: always in bounded memory, whatever the file holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from slm.config.errors import RunError
from slm.data.sources.listing import open_file

CHUNK = 1 << 20
COMPRESSED_CHUNK = 1 << 16
"""What fails to decompress takes its whole chunk with it, so these are small."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}


class DamagedError(Exception):
    """The rest of a file can't be read, because of what is in it."""


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line that was passed over: its length in bytes."""

    size: int


def chunks(
    uri: str, size: int, *, compression: str | None = None, part: tuple[int, int] | None = None
) -> Iterator[bytes]:
    """The bytes of a file, or of a range of it, decompressed: all frames of a zstd file, all members of a gzip one.

    Args:
        size: bytes of the file; one that has become shorter is damaged.
        compression: ``gzip``, ``zstd`` or None.
        part: a half-open range of bytes (uncompressed files only).

    Raises:
        DamagedError: the file ends too early, or its compressed data is damaged.
        RunError: the disk or the network fails.
    """
    with open_file(uri) as file:
        if compression is None:
            yield from _plain(file, uri, *(part or (0, size)))
            return
        if size == 0:
            raise DamagedError("the file is empty, which no compressed file is: a copy that was cut off?")
        try:
            with pa.CompressedInputStream(file, compression) as stream:
                while chunk := stream.read(COMPRESSED_CHUNK):
                    yield chunk
        except (OSError, pa.ArrowException) as error:
            raise _damage(uri, error) from None


def _plain(file: pa.NativeFile, uri: str, start: int, end: int) -> Iterator[bytes]:
    at = start
    try:
        file.seek(start)
        while at < end and (chunk := file.read(min(CHUNK, end - at))):
            at += len(chunk)
            yield chunk
    except OSError as error:
        raise _damage(uri, error) from None
    if at < end:
        raise DamagedError(f"the file has ended at byte {at}, {end - at} bytes before the end that it had")


def _damage(uri: str, error: Exception) -> Exception:
    """Arrow's errors about contents have no error number; those about the disk have one."""
    if getattr(error, "errno", None) is not None:
        return RunError(f"{uri}: can't be read ({error}).")
    return DamagedError(str(error).strip().rstrip("."))


def split_lines(pieces: Iterable[bytes], limit: int) -> Iterator[bytes | TooLong]:
    """The lines of a stream, without their ends; of a line longer than ``limit`` only its length.

    A stream that breaks off loses the line that it breaks off in.
    """
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        *lines, rest = piece.split(b"\n")
        for line in lines:
            size += len(line)
            if held:
                line = b"".join((*held, line))
                held = []
            yield line if size <= limit else TooLong(size)
            size = 0
        size += len(rest)
        if size > limit:
            held = []
        elif rest:
            held.append(rest)
    if size:
        yield b"".join(held) if size <= limit else TooLong(size)


def whole(pieces: Iterable[bytes], limit: int) -> bytes | TooLong:
    """All of a stream, or its length if that is more than ``limit``."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size <= limit:
            held.append(piece)
        else:
            held.clear()
    return b"".join(held) if size <= limit else TooLong(size)


def cut_at_lines(uri: str, size: int, target: int) -> list[tuple[int, int, int]]:
    """Cut a plain file into pieces of about ``target`` bytes that end at line ends: (start, end, number of first line).

    Reads the file once to count its lines, so that every line keeps its number.
    """
    pieces: list[tuple[int, int, int]] = []
    at, begin, line, first = 0, 0, 1, 1
    for chunk in chunks(uri, size):
        done = 0
        while (wanted := max(begin + target - 1 - at, done)) < len(chunk):
            end = chunk.find(b"\n", wanted) + 1
            if not end:
                break
            line += chunk.count(b"\n", done, end)
            pieces.append((begin, at + end, first))
            begin, first, done = at + end, line, end
        line += chunk.count(b"\n", done)
        at += len(chunk)
    if begin < at:
        pieces.append((begin, at, first))
    return pieces
