"""From a source to a finished store: deduplicate, hold out, train the tokenizer, encode, write.

A store's directory is named after what went into it, so two experiments on the same text share one, and a
changed source gets another. It is built beside its final place and renamed at the end: what exists is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from slm.config.errors import ConfigError
from slm.config.identity import fingerprint
from slm.data.config import Data
from slm.data.sources import Document
from slm.data.store import FORMAT, SPLITS, ShardWriter, Store, sync_directory, write_durably
from slm.data.tokenizer import Tokenizer, TokenizerPart

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total) while a store is made; total 0 means unknown."""

SHARD_TOKENS = 128_000_000
BATCH = 256
"""Documents encoded per call: enough to keep all threads busy."""


def store_path(data: Data, tokenizer: TokenizerPart, data_dir: Path | str) -> Path:
    """Where the store of this source and tokenizer belongs."""
    made_of = {
        "format": FORMAT,
        "source": data.source.model_dump(mode="json"),
        "state": data.source.state(),
        "tokenizer": tokenizer.model_dump(mode="json"),
        "heldout": data.heldout,
        "dedup": data.dedup,
    }
    return (
        Path(data_dir) / f"{data.source.part_name}-{tokenizer.part_name}{tokenizer.vocab_size}-{fingerprint(made_of)}"
    )


def prepare(data: Data, tokenizer: TokenizerPart, data_dir: Path | str, *, progress: Progress | None = None) -> Store:
    """Open the store of this source and tokenizer; make it first if it is missing.

    Safe under concurrency: one process builds, the others wait for it. Interrupted at any moment, it leaves
    nothing that looks finished.
    """
    path = store_path(data, tokenizer, data_dir)
    if (path / "manifest.json").exists():
        return Store.open(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".lock")):
        if (path / "manifest.json").exists():  # another process made it while this one waited
            return Store.open(path)
        partial = path.with_name(path.name + ".partial")
        for leftover in (partial, path):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _build(partial, data, tokenizer, progress or (lambda *_: None))
            for folder in (partial / "shards", partial):
                sync_directory(folder)
            os.replace(partial, path)
            sync_directory(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Store.open(path)


def is_heldout(doc_id: str, share: float) -> bool:
    """Whether a document is kept for evaluation: a hash of its id, so that other documents don't matter."""
    return int.from_bytes(hashlib.sha256(f"heldout:{doc_id}".encode()).digest()[:8], "big") < share * 2**64


def _build(root: Path, data: Data, part: TokenizerPart, progress: Progress) -> None:
    root.mkdir(parents=True)
    dropped = {"empty": 0, "duplicate": 0}
    progress("reading", 0, 0)
    splits: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for doc in _distinct(data, dropped):
        splits["heldout" if is_heldout(doc.id, data.heldout) else "train"].append(doc)
    if not splits["train"]:
        raise ConfigError(f"The source {data.source.part_name!r} has no training documents (dropped: {dropped}).")
    if data.heldout and not splits["heldout"]:
        raise ConfigError(
            f"data.heldout={data.heldout} of {len(splits['train'])} documents leaves none for evaluation. Raise it, or set 0."
        )
    progress("training the tokenizer", 0, 0)
    tokenizer = part.load(lambda: (doc.text for doc in splits["train"]))
    raw_tokenizer = tokenizer.to_bytes()
    write_durably(root / "tokenizer.json", raw_tokenizer)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    entries = _encode(root, splits, tokenizer, dtype, progress)
    manifest = {
        "format": FORMAT,
        "dtype": dtype.str,
        "source": data.source.model_dump(mode="json"),
        "source_state": data.source.state(),
        "tokenizer": {"sha256": hashlib.sha256(raw_tokenizer).hexdigest(), "vocab_size": tokenizer.vocab_size},
        "heldout": data.heldout,
        "dropped": dropped,
        "splits": entries,
    }
    hashes = [manifest["tokenizer"], {s: [e["sha256"] for e in entries[s]] for s in SPLITS}]
    manifest["content_sha256"] = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    write_durably(root / "manifest.json", json.dumps(manifest, indent=1).encode())


def _distinct(data: Data, dropped: dict[str, int]) -> Iterator[Document]:
    """The source's documents without empty ones and, if asked, without exact repeats; counts what it drops."""
    seen: set[bytes] = set()
    for doc in data.source.documents():
        key = hashlib.blake2b(doc.text.encode(), digest_size=16).digest()
        if not doc.text:
            dropped["empty"] += 1
        elif data.dedup and key in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            yield doc


def _encode(
    root: Path, splits: dict[str, list[Document]], tokenizer: Tokenizer, dtype: np.dtype, progress: Progress
) -> dict[str, list[dict]]:
    """Write all shards in document order; the batches are encoded in parallel, the order never changes."""
    entries: dict[str, list[dict]] = {name: [] for name in SPLITS}
    number, done, total = 0, 0, sum(len(docs) for docs in splits.values())
    for name, docs in splits.items():
        writer = None
        for i in range(0, len(docs), BATCH):
            batch = docs[i : i + BATCH]
            for doc, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                if writer is None or writer.tokens + len(ids) > SHARD_TOKENS:
                    if writer is not None:
                        entries[name].append(writer.close())
                    writer, number = ShardWriter(root, number, dtype), number + 1
                writer.add(doc.id, ids, len(doc.text.encode()))
            done += len(batch)
            progress("tokenising", done, total)
        if writer is not None:
            entries[name].append(writer.close())
    return entries


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; it disappears with the process, however that ends."""
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
