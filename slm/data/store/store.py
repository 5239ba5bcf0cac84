"""An opened token store: its splits, documents and text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from slm.config.errors import RunError
from slm.data.store import manifest as manifests
from slm.data.store.manifest import SPLITS
from slm.data.store.shard import Origin, Shard
from slm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class StoredDocument:
    """A document as stored: ids without special tokens, and the length of its text in UTF-8 bytes."""

    id: str
    tokens: np.ndarray
    bytes: int


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest of u16 and u32, little-endian, that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Split:
    """The documents of one split, numbered across its shards. Holds nothing per document in memory.

    The *token space* of a split is all its shards' tokens one after the other.
    """

    def __init__(self, shards: list[Shard], content_hash: str = "") -> None:
        self.shards, self.content_hash = shards, content_hash
        self.first_doc = np.cumsum([0, *(s.docs for s in shards)])
        self.first_token = np.cumsum([0, *(s.size for s in shards)])

    def __len__(self) -> int:
        return int(self.first_doc[-1])

    @property
    def tokens(self) -> int:
        """Tokens of all documents, without specials."""
        return sum(int(s.entry["tokens"]) for s in self.shards)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents; 0 if an imported corpus doesn't say."""
        return sum(int(s.entry["bytes"]) for s in self.shards)

    def bounds(self, first: int = 0, last: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of documents [first, last) in the split's token space, int64."""
        last = len(self) if last is None else last
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for shard, base, space in zip(self.shards, self.first_doc, self.first_token, strict=False):
            a, b = max(first, int(base)) - int(base), min(last, int(base) + shard.docs) - int(base)
            if a < b:
                found = shard.bounds(a, b)
                starts.append(found[0] + space)
                ends.append(found[1] + space)
        return np.concatenate(starts), np.concatenate(ends)

    def lengths(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Tokens of documents [first, last), int64."""
        starts, ends = self.bounds(first, last)
        return ends - starts

    def offsets(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Place of each document's first token in the token space, int64."""
        return self.bounds(first, last)[0]

    def take(self, offset: int, length: int) -> np.ndarray:
        """Verified view of tokens [offset, offset + length) of the token space, within one shard."""
        if len(self.shards) == 1:
            return self.shards[0].read(offset, offset + length)
        index = int(np.searchsorted(self.first_token, offset, side="right")) - 1
        base = int(self.first_token[index])
        return self.shards[index].read(offset - base, offset - base + length)

    def read(self, doc: int, start: int, end: int) -> np.ndarray:
        """Tokens [start, end) of document ``doc``."""
        return self.take(int(self.bounds(doc, doc + 1)[0][0]) + start, end - start)

    def documents(self) -> Iterator[StoredDocument]:
        """All documents in order."""
        for shard in self.shards:
            meta = shard.meta(("id", "bytes"))
            starts, ends = shard.bounds(0, shard.docs)
            for i, (name, size) in enumerate(zip(meta["id"].to_pylist(), meta["bytes"].to_pylist(), strict=True)):
                yield StoredDocument(name, shard.read(int(starts[i]), int(ends[i])), size)

    def meta(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The metadata of each shard, a row a document."""
        for shard in self.shards:
            yield shard.meta(columns)


class Store:
    """An opened token store."""

    def __init__(self, path: Path, origin: Origin | None = None) -> None:
        self.path = path
        self.manifest = manifests.read(path)
        name = self.manifest["tokenizer"]["file"]
        raw = (path / name).read_bytes() if (path / name).is_file() else b""
        if hashlib.sha256(raw).hexdigest() != self.manifest["tokenizer"]["sha256"]:
            raise RunError(f"{path / name}: not the tokenizer that this store was made with. Make the store again.")
        self.tokenizer_bytes = raw
        dtype = np.dtype(self.manifest["dtype"])
        self.splits = {
            name: Split(
                [Shard(path, entry, dtype, origin) for entry in self.manifest["splits"][name]],
                f"{self.manifest['content_sha256']}/{name}",
            )
            for name in SPLITS
        }

    @classmethod
    def open(cls, path: Path | str, *, cache_dir: Path | str | None = None) -> "Store":
        """Open a store: a directory, or a URL of one (``s3://bucket/store``) read through a local copy in ``cache_dir``.

        Raises:
            RunError: there is none, or it is not whole.
        """
        if "://" in str(path):
            from slm.data.store.remote import mirror

            return cls(*mirror(str(path), cache_dir))
        return cls(Path(path))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the store was made with."""
        return Tokenizer.from_bytes(self.tokenizer_bytes)

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
