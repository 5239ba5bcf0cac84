"""The token store: documents as ids on disk, with checksums, written once.

::

    store/
      manifest.json        what is here, written last: a directory without it is no store
      tokenizer.json
      shards/00000.tok     little-endian token ids (u16, or u32 for vocabularies above 65,536), no header
      shards/00000.idx     u64 exclusive end of every document, in tokens
      shards/00000.crc     u32 CRC-32 of every 1 MiB block of .tok, then one of the whole .idx
      shards/00000.meta    parquet: document ids and their lengths in UTF-8 bytes

A store holds two splits, ``train`` and ``heldout``; each is a list of shards. Every block is checked when
it is first touched, so a flipped bit is an error that names the shard and the offset, never a wrong token.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slm.config.errors import RunError
from slm.data.tokenizer import Tokenizer

FORMAT = 1
BLOCK = 1 << 20
SPLITS = ("train", "heldout")


class Shard:
    """One shard, memory-mapped. Blocks are verified at first touch."""

    def __init__(self, root: Path, entry: dict[str, Any], dtype: np.dtype[Any]) -> None:
        self.stem, self.entry, self.dtype = root / "shards" / entry["file"], entry, dtype
        blocks = -(-entry["tokens"] * dtype.itemsize // BLOCK)
        expected = {".tok": entry["tokens"] * dtype.itemsize, ".idx": entry["docs"] * 8, ".crc": (blocks + 1) * 4}
        for suffix, size in expected.items():
            path = self.path(suffix)
            if not path.is_file() or path.stat().st_size != size:
                got = f"has {path.stat().st_size} bytes" if path.is_file() else "is missing"
                raise RunError(
                    f"{path}: the manifest promises {size} bytes, but the file {got}. Remove the store and make it again."
                )
        raw_idx = self.path(".idx").read_bytes()
        self.crc = np.frombuffer(self.path(".crc").read_bytes(), dtype="<u4")
        if zlib.crc32(raw_idx) != int(self.crc[-1]):
            raise RunError(
                f"{self.path('.idx')}: checksum differs from {self.path('.crc').name}. Remove the store and make it again."
            )
        self.ends = np.frombuffer(raw_idx, dtype="<u8").astype(np.int64)
        self.starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]]) if len(self.ends) else self.ends
        self.tokens = np.memmap(self.path(".tok"), dtype=dtype, mode="r") if entry["tokens"] else np.empty(0, dtype)
        self._checked = np.zeros(blocks, dtype=bool)

    def path(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    def read(self, start: int, end: int) -> np.ndarray:
        """Token ids [start, end) of the shard. Raises `RunError` naming file and offset on a bad block."""
        if end > start:
            size = self.dtype.itemsize
            first, last = start * size // BLOCK, (end * size - 1) // BLOCK
            if not self._checked[first : last + 1].all():
                for block in range(first, last + 1):
                    self._check(block)
        return self.tokens[start:end]

    def _check(self, block: int) -> None:
        if self._checked[block]:
            return
        raw = self.tokens.view(np.uint8)[block * BLOCK : (block + 1) * BLOCK]
        if zlib.crc32(raw.tobytes()) != int(self.crc[block]):
            raise RunError(
                f"{self.path('.tok')}: block {block} (bytes {block * BLOCK} to {block * BLOCK + len(raw)}) differs from its "
                f"checksum: the file was damaged after it was written. Remove the store and make it again."
            )
        self._checked[block] = True

    def verify(self) -> None:
        """Check every block and the metadata. Raises `RunError` at the first fault."""
        for block in range(len(self._checked)):
            self._checked[block] = False
            self._check(block)
        self.meta()

    def meta(self) -> pa.Table:
        """Document ids (``id``) and lengths in UTF-8 bytes (``bytes``). Raises `RunError` if they were damaged.

        Checked at every read: a wrong length in bytes would be a wrong number of bits per byte.
        """
        path = self.path(".meta")
        raw = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(raw).hexdigest() != self.entry["meta_sha256"]:
            what = "its checksum differs from the manifest" if raw else "the file is missing or empty"
            raise RunError(f"{path}: {what}. Remove the store and make it again.")
        return pq.read_table(pa.BufferReader(raw))


@dataclass(frozen=True)
class StoredDocument:
    """A document as stored: ids without special tokens, and the length of its text in UTF-8 bytes."""

    id: str
    tokens: np.ndarray
    bytes: int


class Split:
    """The documents of one split, numbered across its shards."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.first_doc = np.cumsum([0, *(len(s.ends) for s in shards)])
        self.lengths = np.concatenate([s.ends - s.starts for s in shards] or [np.empty(0, np.int64)])

    def __len__(self) -> int:
        return int(self.first_doc[-1])

    @property
    def tokens(self) -> int:
        """Tokens of all documents, without specials."""
        return int(self.lengths.sum())

    def read(self, doc: int, start: int, end: int) -> np.ndarray:
        """Tokens [start, end) of document ``doc``."""
        index = int(np.searchsorted(self.first_doc, doc, side="right")) - 1
        shard = self.shards[index]
        base = int(shard.starts[doc - int(self.first_doc[index])])
        return shard.read(base + start, base + end)

    def documents(self) -> Iterator[StoredDocument]:
        """All documents in order."""
        for shard in self.shards:
            meta = shard.meta()
            for i, (name, size) in enumerate(zip(meta["id"].to_pylist(), meta["bytes"].to_pylist(), strict=True)):
                yield StoredDocument(name, shard.read(int(shard.starts[i]), int(shard.ends[i])), size)


class Store:
    """An opened token store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        raw = (path / "tokenizer.json").read_bytes() if (path / "tokenizer.json").is_file() else b""
        if hashlib.sha256(raw).hexdigest() != self.manifest["tokenizer"]["sha256"]:
            raise RunError(
                f"{path / 'tokenizer.json'}: not the tokenizer that this store was made with. Make the store again."
            )
        self.tokenizer = Tokenizer.from_bytes(raw)
        dtype = np.dtype(self.manifest["dtype"])
        self.splits = {
            name: Split([Shard(path, entry, dtype) for entry in self.manifest["splits"][name]]) for name in SPLITS
        }

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Open a store. Raises `RunError` if there is none, or if it is not whole."""
        return cls(Path(path))

    @property
    def content_hash(self) -> str:
        """SHA-256 over the tokenizer and the contents of every shard."""
        return str(self.manifest["content_sha256"])

    def split(self, name: str) -> Split:
        """``train`` or ``heldout``."""
        return self.splits[name]

    def documents(self, split: str) -> Iterator[StoredDocument]:
        """The documents of a split."""
        return self.split(split).documents()

    def text(self, split: str) -> bytes:
        """The exact bytes of all documents of a split, joined."""
        return b"".join(self.tokenizer.decode_bytes(doc.tokens) for doc in self.documents(split))

    def verify(self) -> None:
        """Check every checksum of the store. Raises `RunError` at the first fault."""
        for split in self.splits.values():
            for shard in split.shards:
                shard.verify()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        what = "is not finished (it has no manifest.json)" if path.is_dir() else "does not exist"
        raise RunError(f"The token store {path} {what}.") from None
    except ValueError as error:
        raise RunError(f"{file}: not valid JSON ({error}). Remove the store and make it again.") from None
    written_in = manifest.get("format") if isinstance(manifest, dict) else None
    if written_in != FORMAT:
        raise RunError(
            f"{file}: written in format {written_in!r}; this slm reads format {FORMAT}. Make the store again."
        )
    if missing := sorted({"dtype", "tokenizer", "splits", "content_sha256"} - set(manifest)):
        raise RunError(f"{file}: lacks {', '.join(missing)}. Remove the store and make it again.")
    return manifest  # type: ignore[no-any-return]


class ShardWriter:
    """Writes one shard, document by document; `close` returns its entry for the manifest."""

    def __init__(self, root: Path, number: int, dtype: np.dtype[Any]) -> None:
        (root / "shards").mkdir(parents=True, exist_ok=True)
        self.stem, self.dtype = root / "shards" / f"{number:05d}", dtype
        self._tok = self._path(".tok").open("wb")
        self.tokens, self._ends, self._ids, self._bytes = 0, list[int](), list[str](), list[int]()

    def _path(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    def add(self, doc_id: str, ids: list[int], utf8_bytes: int) -> None:
        """Append a document."""
        self._tok.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.tokens += len(ids)
        self._ends.append(self.tokens)
        self._ids.append(doc_id)
        self._bytes.append(utf8_bytes)

    def close(self) -> dict[str, Any]:
        """Write index, checksums and metadata, flush all to disk."""
        _sync(self._tok)
        idx = np.array(self._ends, dtype="<u8").tobytes()
        raw = self._path(".tok").read_bytes()
        crcs = [zlib.crc32(raw[i : i + BLOCK]) for i in range(0, len(raw), BLOCK)] + [zlib.crc32(idx)]
        write_durably(self._path(".idx"), idx)
        write_durably(self._path(".crc"), np.array(crcs, dtype="<u4").tobytes())
        table, meta = pa.table({"id": self._ids, "bytes": pa.array(self._bytes, pa.int64())}), pa.BufferOutputStream()
        pq.write_table(table, meta)
        raw_meta = meta.getvalue().to_pybytes()
        write_durably(self._path(".meta"), raw_meta)
        return {
            "file": self.stem.name,
            "tokens": self.tokens,
            "docs": len(self._ends),
            "bytes": sum(self._bytes),
            "sha256": hashlib.sha256(raw + idx).hexdigest(),
            "meta_sha256": hashlib.sha256(raw_meta).hexdigest(),
        }


def write_durably(path: Path, raw: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(raw)
        _sync(file)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk: a file's own fsync doesn't cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
