"""Exact duplicates among any number of documents, with bounded memory.

Every unit of the corpus writes the 128-bit hashes of its documents to a file of its own (`hash_text`, `write_hashes`: any
worker, any order). Then one pass over the files (`find_duplicates`) says which rows of each unit to drop: all but the
first occurrence, in the order of units and of rows. The answer is a function of the texts alone, not of the workers.

The pass is an external hash partition: rows go to buckets by their leading bits, each bucket is small enough to be
sorted in memory, and equal hashes meet in one bucket. 128 bits of BLAKE2b make a false match impossible in
practice: about n^2 / 2^129, or 1e-20 for the 3 billion documents of DCLM.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from slm.config.errors import ConfigError, RunError
from slm.config.files import replace_durably

Mode = Literal["exact", "normalized", "off"]
"""``exact``: the same bytes. ``normalized``: the same up to case, white space and Unicode's compatibility forms."""

_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
_WORKING = 6
"""Bytes of memory per byte of rows being sorted: the rows twice, their order, the sorted hashes, the distinct rows."""


def normalize(text: str) -> str:
    """NFKC, case folded, every run of white space one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def hash_text(text: str, mode: Mode = "exact") -> bytes:
    """BLAKE2b-128 of a text: 16 bytes. Raises `ConfigError` for mode ``off``."""
    if mode not in ("exact", "normalized"):
        raise ConfigError(f"dedup: {mode!r} has no hashes. Modes that have are exact and normalized.")
    same = normalize(text) if mode == "normalized" else text
    return hashlib.blake2b(same.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def hash_texts(texts: Iterable[str], mode: Mode = "exact") -> np.ndarray:
    """`hash_text` of every text: uint64 of shape (n, 2)."""
    return as_rows(b"".join(hash_text(text, mode) for text in texts))


def as_rows(hashes: bytes | bytearray) -> np.ndarray:
    """Hashes one after the other as uint64 of shape (n, 2)."""
    return np.frombuffer(hashes, "<u8").reshape(-1, 2)


def write_hashes(path: Path, hashes: np.ndarray) -> None:
    """Write the hashes of a unit, uint64 of shape (n, 2), whole or not at all."""
    if hashes.ndim != 2 or hashes.shape[1] != 2 or hashes.dtype != np.uint64:
        raise ValueError(f"hashes are uint64 of shape (n, 2), not {hashes.dtype} of shape {hashes.shape}")
    replace_durably(path, npy_bytes(np.ascontiguousarray(hashes, "<u8")))


def npy_bytes(array: np.ndarray) -> memoryview:
    """The contents of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getbuffer()


def find_duplicates(
    paths: list[Path], memory_bytes: int = 1 << 30, *, scratch: Path | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """For every unit, in the order of ``paths``: its number, and the rows that occurred before (int64, ascending).

    Uses about ``memory_bytes``, and disk in ``scratch`` (default: the system's place for temporary files): 24 bytes per
    document, and 8 per duplicate. More memory is needed only if one unit's own duplicates don't fit.
    Raises `RunError` for a file of hashes that is missing or not whole.
    """
    if memory_bytes < 1 << 16:
        raise ConfigError(f"dedup: {memory_bytes} bytes of memory are too few. Give 64 KiB or more.")
    counts = [len(_open(path)) for path in paths]
    first = np.cumsum([0, *counts], dtype=np.int64)
    batch = memory_bytes // (_ROW.itemsize * _WORKING)
    buckets = max(1, -(-int(first[-1]) * 2 // batch))  # half full, so that chance doesn't overfill one
    with tempfile.TemporaryDirectory(prefix="slm-dedup-", dir=scratch) as folder:
        files = [Path(folder) / f"{i:06d}" for i in range(buckets)]
        _partition(paths, first, files, batch)
        for file in files:
            _repeats(file, batch)
        yield from _by_unit(files, first)


def _open(path: Path) -> np.ndarray:
    """The hashes of a unit, mapped."""
    try:
        hashes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path}: no whole file of hashes ({error}). Remove it, and hash its unit again.") from None
    if hashes.ndim != 2 or hashes.shape[1] != 2 or hashes.dtype != np.dtype("<u8"):
        raise RunError(f"{path}: holds {hashes.dtype} of shape {hashes.shape}, not hashes. Hash its unit again.")
    return hashes


def _rows(paths: list[Path], first: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """All rows in global order, in pieces of ``batch`` (the last is smaller)."""
    batch = min(batch, max(1, int(first[-1])))
    piece, filled = np.empty(batch, _ROW), 0
    for unit, path in enumerate(paths):
        hashes, start = _open(path), 0
        while start < len(hashes):
            taken = min(batch - filled, len(hashes) - start)
            into, at = piece[filled : filled + taken], int(first[unit]) + start
            into["high"], into["low"] = hashes[start : start + taken].T
            into["row"] = np.arange(at, at + taken, dtype=np.uint64)
            filled, start = filled + taken, start + taken
            if filled == batch:
                yield piece
                filled = 0
    yield piece[:filled]


def _partition(paths: list[Path], first: np.ndarray, files: list[Path], batch: int) -> None:
    """Append every row to its bucket's file, in global order; bucket = the leading bits, scaled to the number of buckets."""
    for file in files:
        file.touch()
    for rows in _rows(paths, first, batch):
        bucket = ((rows["high"] >> np.uint64(32)) * np.uint64(len(files))) >> np.uint64(32)
        order = np.argsort(bucket, kind="stable")
        cuts = np.searchsorted(bucket[order], np.arange(len(files) + 1))
        rows = rows[order]
        for i in np.flatnonzero(np.diff(cuts)):
            with files[i].open("ab") as out:  # opened anew: there may be more buckets than a process may have files
                rows[cuts[i] : cuts[i + 1]].tofile(out)


def _repeats(file: Path, batch: int) -> None:
    """Replace a bucket's file by the sorted numbers of those of its rows that occurred before.

    A bucket is too large for one go only if it holds many repeats (or its hashes are no hashes), for distinct hashes
    spread evenly. Hence its rows come in pieces, and only distinct ones are kept.
    """
    seen, result = np.empty(0, _ROW), file.with_suffix(".rows")
    with file.open("rb") as source, result.open("wb") as out:
        while len(rows := np.fromfile(source, _ROW, batch)):
            both = np.concatenate([seen, rows])
            order = np.argsort(both["high"], kind="stable")  # what came first stays first
            high, low = both["high"][order], both["low"][order]
            again = high[1:] == high[:-1]
            if (again & (low[1:] != low[:-1])).any():  # half a hash is equal by chance: once in 10^9 documents
                order = np.lexsort((both["low"], both["high"]))
                high, low = both["high"][order], both["low"][order]
                again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
            repeated = np.zeros(len(both), bool)
            repeated[order[1:][again]] = True
            both["row"][repeated].tofile(out)  # ascending within and across pieces: rows come in global order
            seen = both[~repeated]
    os.replace(result, file)


def _by_unit(files: list[Path], first: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Merge the buckets' sorted lists, a unit at a time."""
    lists = [np.memmap(f, "<i8", "r") if f.stat().st_size else np.empty(0, np.int64) for f in files]
    at = [0] * len(lists)
    for unit in range(len(first) - 1):
        pieces = []
        for i, numbers in enumerate(lists):
            end = at[i] + int(np.searchsorted(numbers[at[i] :], first[unit + 1]))
            pieces.append(np.asarray(numbers[at[i] : end]))
            at[i] = end
        yield unit, np.sort(np.concatenate(pieces)) - first[unit]
