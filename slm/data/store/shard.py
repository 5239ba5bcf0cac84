"""One shard of a store: reading it, and writing it document by document."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slm.config.errors import RunError
from slm.config.files import sync, write_durably
from slm.data.store.checked import CheckedFile, Checksummer, Fetch, blocks_of, checksums

Origin = Callable[[str], Fetch]
"""From a file's name in the store to what brings its bytes, for a store that lies elsewhere."""


class Shard:
    """One shard. Its sizes are compared with the manifest at once, its contents when they are read.

    The tokens of an imported corpus stay in its own file: ``.tok`` is then a link to it, ``entry["offset"]`` says
    at which byte they start, ``entry["space"]`` how many there are, specials between documents included, and the
    index holds pairs (start, end).
    """

    def __init__(self, root: Path, entry: dict[str, Any], dtype: np.dtype[Any], origin: Origin | None = None) -> None:
        self.stem, self.entry, self.dtype = root / "shards" / entry["file"], entry, dtype
        self.imported = "space" in entry
        self.docs, self.size = int(entry["docs"]), int(entry.get("space", entry["tokens"]))
        self.offset, self._width = int(entry.get("offset", 0)), 16 if self.imported else 8
        self._origin = origin
        self._open: tuple[CheckedFile, CheckedFile] | None = None
        self._check_sizes()

    def path(self, suffix: str) -> Path:
        """The file of this shard with a suffix."""
        return self.stem.with_name(self.stem.name + suffix)

    def _check_sizes(self) -> None:
        tok, idx = self.size * self.dtype.itemsize, self.docs * self._width
        expected = {".tok": self.offset + tok, ".idx": idx, ".crc": (blocks_of(tok) + blocks_of(idx)) * 4}
        for suffix, size in expected.items():
            path = self.path(suffix)
            found = path.stat().st_size if path.is_file() else None
            longer_is_fine = self.imported and suffix == ".tok"
            if found is None or (found < size if longer_is_fine else found != size):
                got = "is missing" if found is None else f"has {found}"
                raise RunError(
                    f"{path}: the manifest promises {size} bytes, but the file {got}. Remove the store and make it again."
                )

    @property
    def files(self) -> tuple[CheckedFile, CheckedFile]:
        """(tokens, index), opened at first use."""
        if self._open is None:
            tok = self.size * self.dtype.itemsize
            crcs = np.frombuffer(self.path(".crc").read_bytes(), "<u4")
            brings = {
                s: self._origin(f"shards/{self.path(s).name}") if self._origin else None for s in (".tok", ".idx")
            }
            cut = blocks_of(tok)
            self._open = (
                CheckedFile(self.path(".tok"), tok, crcs[:cut], offset=self.offset, fetch=brings[".tok"]),
                CheckedFile(self.path(".idx"), self.docs * self._width, crcs[cut:], fetch=brings[".idx"]),
            )
        return self._open

    def bounds(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends in tokens of documents [first, last), int64 of shape (last - first,) each."""
        if self.imported:
            pairs = np.frombuffer(self.files[1].view(first * 16, last * 16), "<u8").reshape(-1, 2).astype(np.int64)
            return pairs[:, 0], pairs[:, 1]
        before = max(0, first - 1)  # a document starts where the one before it ends
        ends = np.frombuffer(self.files[1].view(before * 8, last * 8), "<u8").astype(np.int64)
        if first == 0:
            return np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)], ends
        return ends[:-1], ends[1:]

    def read(self, start: int, end: int) -> np.ndarray:
        """Token ids [start, end) of the shard. Raises `RunError` naming file and offset on a bad block."""
        width = self.dtype.itemsize
        return self.files[0].view(start * width, end * width).view(self.dtype)

    def verify(self) -> None:
        """Check every block, the order of the index and the metadata. Raises `RunError` at the first fault."""
        for file in self.files:
            file.verify()
        self.meta()
        for first in range(0, self.docs, 1 << 20):
            starts, ends = self.bounds(first, min(first + (1 << 20), self.docs))
            if (starts > ends).any() or (len(ends) and ends[-1] > self.size):
                raise RunError(
                    f"{self.path('.idx')}: document ends are out of order. Remove the store and make it again."
                )

    def meta(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Document ids (``id``), lengths in UTF-8 bytes (``bytes``) and the source's columns. Raises `RunError`
        if they were damaged.

        Checked at every read: a wrong length in bytes would be a wrong number of bits per byte.
        """
        path = self.path(".meta")
        if self._origin and not path.is_file():
            write_durably(path, self._origin(f"shards/{path.name}")(0, -1))
        raw = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(raw).hexdigest() != self.entry["meta_sha256"]:
            what = "its checksum differs from the manifest" if raw else "the file is missing or empty"
            raise RunError(f"{path}: {what}. Remove the store and make it again.")
        return pq.read_table(pa.BufferReader(raw), columns=None if columns is None else list(columns))


def write_shard(folder: Path, number: int, tokens: np.ndarray, lengths: np.ndarray, meta: pa.Table) -> dict[str, Any]:
    """Write a shard of documents that stand one after the other in ``tokens``; returns its entry for the manifest.

    Args:
        lengths: tokens of each document, int64.
        meta: a row a document: ``id``, ``bytes`` (of its text in UTF-8), more.

    The files get their final names at once: the caller writes into a folder that is not the store yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{number:05d}"
    sums, sha = Checksummer(), hashlib.sha256()
    with stem.with_name(stem.name + ".tok").open("wb") as file:
        raw = memoryview(np.ascontiguousarray(tokens).data).cast("B")
        for start in range(0, len(raw), 1 << 24):
            piece = raw[start : start + (1 << 24)]
            file.write(piece)
            sums.update(piece)
            sha.update(piece)
        sync(file)
    size = pc.sum(meta["bytes"]).as_py() or 0
    entry = {"file": stem.name, "tokens": len(tokens), "docs": len(lengths), "bytes": int(size)}
    return entry | write_companions(stem, np.cumsum(lengths), sums.finish(), sha, meta)


def write_companions(stem: Path, ends: np.ndarray, token_crcs: np.ndarray, sha: Any, meta: pa.Table) -> dict[str, str]:
    """Write ``.idx``, ``.crc`` and ``.meta`` beside a token file; returns the checksums for its manifest entry."""
    idx = np.ascontiguousarray(ends, "<u8").tobytes()
    sha.update(idx)
    write_durably(stem.with_name(stem.name + ".idx"), idx)
    crcs = np.concatenate([token_crcs, checksums([idx])]).astype("<u4")
    write_durably(stem.with_name(stem.name + ".crc"), crcs.tobytes())
    buffer = pa.BufferOutputStream()
    pq.write_table(meta, buffer, compression="zstd")
    raw = buffer.getvalue().to_pybytes()
    write_durably(stem.with_name(stem.name + ".meta"), raw)
    return {"sha256": sha.hexdigest(), "meta_sha256": hashlib.sha256(raw).hexdigest()}
