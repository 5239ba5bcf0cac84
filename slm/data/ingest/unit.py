"""The first pass: one unit of a source becomes token ids in a folder of their own.

::

    units/00012/
      tokens.bin   ids of the kept documents, in the unit's order
      table.npy    a record a document, sorted by its place in the shuffled store
      hashes.npy   u64 of shape (documents, 2): what deduplication compares
      meta.arrow   id, bytes and the source's columns, in the unit's order
      counts.json  where every record of the unit went

The folder gets its name once it is whole, so an interrupted unit is done again and a finished one never.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from slm.config.errors import RunError
from slm.config.files import sync, sync_directory, write_durably
from slm.data.curate.decontaminate import Index
from slm.data.curate.dedup import as_rows, hash_text, write_hashes
from slm.data.document import Broken, Document, Unit
from slm.data.ingest.config import Curation, hash64, is_heldout
from slm.data.ingest.screen import Screen
from slm.data.sources import SourcePart
from slm.data.store import SPLITS, token_dtype
from slm.data.tokenizer import BackendName, Tokenizer, Verified, backend

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 4_000_000
"""Documents encoded in one call, at most: enough to keep threads busy, little enough to hold."""
META_ROWS = 4096

TABLE = np.dtype(
    [("key", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("bytes", "<u4"), ("at", "<u4"), ("split", "u1")]
)
"""A document: its place in the store's order, its tokens in tokens.bin, its text's UTF-8 bytes, its number in the unit."""

Tick = Callable[[int, int, int], None]
"""Called as (documents, tokens, bytes of text) after every batch."""


@dataclass(frozen=True)
class Job:
    """All that decides the bytes of a store, and with which backend they are made. Travels to worker processes."""

    sources: tuple[SourcePart, ...]
    units: tuple[tuple[int, Unit], ...]
    """(which source, which unit of it), in order."""
    curation: Curation
    tokenizer: Tokenizer
    backend: BackendName = "auto"
    threads: int = 1
    index: Path | None = None
    """The index of the evaluation sets, built before."""

    def name(self, index: int) -> str:
        """A unit's name in the job."""
        source, unit = self.units[index]
        return f"{source}/{unit.name}"


class Workshop:
    """What a process keeps between units: tokenizer, encoder, filters."""

    def __init__(self, job: Job) -> None:
        self.job = job
        tokenizer = job.tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.encoder = Verified(backend(tokenizer, job.backend, job.threads))
        self.screen = Screen(job.curation, Index.load(job.index) if job.index else None)

    def process(self, index: int, folder: Path, tick: Tick) -> None:
        """Tokenise unit ``index`` of the job into ``folder``, unless that is done already."""
        if folder.is_dir():
            return
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._write(index, partial, tick)
            sync_directory(partial)
            if not folder.is_dir():
                os.replace(partial, folder)
            sync_directory(folder.parent)
        except OSError as error:
            raise RunError(
                f"Can't write {partial}: {error.strerror or error}. Make room and run the same command again."
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, index: int, folder: Path, tick: Tick) -> None:
        writer = _UnitWriter(folder, self.job, index, self.dtype)
        self.encoder.start(self.job.name(index), self.job.units[index][1].bytes)
        for batch in _batches(self._kept(index, writer.counts)):
            ids = self.encoder.encode_batch([doc.text for _, doc in batch], [doc.id for _, doc in batch])
            tokens, size = 0, 0
            for (row, doc), doc_ids in zip(batch, ids, strict=True):
                size += writer.add(row, doc, doc_ids)
                tokens += len(doc_ids)
            tick(len(batch), tokens, size)
        writer.close()

    def _kept(self, index: int, counts: Counter[str]) -> Iterator[tuple[int, Document]]:
        """(row, document) of what passes; counts every record that was read and why it was dropped."""
        number, unit = self.job.units[index]
        source = self.job.sources[number]
        for row, record in enumerate(source.read(unit)):
            counts["read"] += 1
            if isinstance(record, Broken):
                source.refuse(record)
                counts[record.rule] += 1
                continue
            record = self.screen.enriched(record)
            rule = self.screen.reason(record)
            if rule is not None:
                counts[rule] += 1
            else:
                yield row, record


class _UnitWriter:
    """Writes the files of a unit in constant memory per document."""

    def __init__(self, folder: Path, job: Job, index: int, dtype: np.dtype[Any]) -> None:
        self.folder, self.dtype, self.curation = folder, dtype, job.curation
        self.name, self.index = job.name(index), index
        self.counts: Counter[str] = Counter()
        self._tokens = (folder / "tokens.bin").open("wb")
        self._columns = {name: array(kind) for name, kind in zip(TABLE.names or (), "QQIIIB", strict=True)}
        self._hashes = bytearray()
        self._offset = 0
        self._meta = _MetaWriter(folder / "meta.arrow")

    def add(self, row: int, doc: Document, ids: Any) -> int:
        """Append a document; returns the bytes of its text."""
        raw = doc.text.encode()
        self._tokens.write(np.asarray(ids, dtype=self.dtype).tobytes())
        heldout = is_heldout(doc.id, self.curation.heldout)
        at = len(self._columns["key"])
        record = (self._key(row), self._offset, len(ids), len(raw), at, SPLITS.index("heldout" if heldout else "train"))
        for column, value in zip(self._columns.values(), record, strict=True):
            column.append(value)
        if self.curation.dedup != "off":
            self._hashes += hash_text(doc.text, self.curation.dedup)
        self._offset += len(ids)
        self._meta.add(doc, len(raw))
        return len(raw)

    def _key(self, row: int) -> int:
        """A document's place in the store: a hash of where it came from, or just where it came from."""
        if self.curation.shuffle:
            return hash64(f"shuffle:{self.curation.shuffle_seed}:{self.name}:{row}")
        return self.index << 40 | row

    def close(self) -> None:
        """Flush everything to the disk."""
        sync(self._tokens)
        self._tokens.close()
        table = np.empty(len(self._columns["key"]), TABLE)
        for name, column in self._columns.items():
            table[name] = np.frombuffer(column, dtype=column.typecode) if len(column) else []
        table = table[np.argsort(table["key"], kind="stable")]
        np.save(self.folder / "table.npy", table)
        write_hashes(self.folder / "hashes.npy", as_rows(self._hashes))
        self._meta.close()
        self.counts["kept"] = len(table)
        totals = {s: int(table["length"][table["split"] == i].sum()) for i, s in enumerate(SPLITS)}
        write_durably(self.folder / "counts.json", json.dumps({"counts": dict(self.counts), "tokens": totals}).encode())
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())


class _MetaWriter:
    """Writes rows of metadata as Arrow record batches; the schema widens as values of new columns come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []

    def add(self, doc: Document, size: int) -> None:
        self._rows.append({**{k: _plain(v) for k, v in doc.meta.items()}, "id": doc.id, "bytes": size})
        if len(self._rows) >= META_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            names = dict.fromkeys(name for row in self._rows for name in row)
            self._tables.append(pa.table({name: _column([row.get(name) for row in self._rows]) for name in names}))
            self._rows = []

    def close(self) -> None:
        self._flush()
        empty = pa.table({"id": pa.array([], pa.string()), "bytes": pa.array([], pa.int64())})
        table = pa.concat_tables([empty, *self._tables], promote_options="permissive")
        with pa.OSFile(str(self.path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=META_ROWS)


def _column(values: list[Any]) -> pa.Array:
    """Values as an Arrow array; as text where their types don't go together."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def _plain(value: Any) -> Any:
    """Nested values as JSON text: their shape differs from file to file, a column's type must not."""
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, (dict, list)) else value


def _batches(documents: Iterator[tuple[int, Document]]) -> Iterator[Sequence[tuple[int, Document]]]:
    batch: list[tuple[int, Document]] = []
    characters = 0
    for item in documents:
        batch.append(item)
        characters += len(item[1].text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
