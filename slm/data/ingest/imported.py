"""A token store over ready-made tokens of another tool: linked, not copied, where they lie in files of their own.

The store adds what foreign files lack: document bounds, checksums, lengths in bytes, a held-out split. Special
tokens between documents stay where they are, outside every document's bounds. Token lists in the rows of a table
(``columns``) can't be linked to; those are copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from slm.config.errors import ConfigError, RunError
from slm.config.files import locked, sync_directory, write_durably
from slm.data.document import Broken
from slm.data.importers import ImporterPart, TokenFile, TokenFileImporter, TokenListImporter, detect, importer
from slm.data.ingest.account import manifest_of
from slm.data.ingest.config import is_heldout
from slm.data.store import SPLITS, Store, token_dtype
from slm.data.store import manifest as manifests
from slm.data.store.checked import Checksummer
from slm.data.store.shard import write_companions, write_shard
from slm.data.tokenizer import Tokenizer, TokenizerPart

CHUNK = 1 << 22
"""Tokens looked at in one go."""
SHARD_TOKENS = 1 << 26
"""Tokens of a shard, where they are copied."""


def importer_for(path: Path, name: str, settings: dict[str, Any], tokenizer: Tokenizer) -> ImporterPart:
    """The importer of a format (``auto``: by the files' contents); marks are the tokenizer's end-of-text by default."""
    name = detect(path) if name == "auto" else name
    fields = importer.get(name).model_fields
    marks = {"eos": tokenizer.eot_id} if "eos" in fields and not {"eos", "bos", "unmarked"} & set(settings) else {}
    if name == "llmc" and marks:
        marks = {"bos": tokenizer.eot_id}  # there a document begins with it
    return importer.parse({"name": name, **marks, **settings})


def import_tokens(
    out: Path,
    paths: Sequence[Path],
    part: TokenizerPart,
    *,
    name: str = "auto",
    settings: dict[str, Any] | None = None,
    heldout: float = 0.0,
) -> Store:
    """Make the store ``out`` over ready-made tokens.

    Args:
        part: the tokenizer that the files were made with: it decides what the ids mean.
        name: the format, by its importer's name.
        settings: of the importer, such as ``{"eos": 0}``.
        heldout: share of documents kept for evaluation, by a hash of their id.

    Raises:
        ConfigError: there are no documents; ``out`` exists already; an impossible setting.
        RunError: files that aren't what they seem, or have ids that the tokenizer doesn't have.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already. Remove it, or choose another place.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(out.name + ".partial")
    with locked(out.with_name(out.name + ".lock")):
        shutil.rmtree(work, ignore_errors=True)
        (work / "shards").mkdir(parents=True)
        try:
            tokenizer = part.load(lambda: ())
            write_durably(work / tokenizer.file_name, tokenizer.to_bytes())
            job = _Import(work, tokenizer, heldout)
            for path in paths:
                job.take(importer_for(path, name, settings or {}, tokenizer), path)
            made_of = {"imported": [str(p) for p in paths], "format": name, "settings": settings or {}}
            manifests.write(
                work, job.manifest(made_of | {"tokenizer": part.model_dump(mode="json"), "heldout": heldout})
            )
            sync_directory(work / "shards")
            os.replace(work, out)
            sync_directory(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Store.open(out)


class _Import:
    """The shards of a store in the making."""

    def __init__(self, work: Path, tokenizer: Tokenizer, heldout: float) -> None:
        self.work, self.tokenizer, self.heldout = work, tokenizer, heldout
        self.splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
        self.dropped: Counter[str] = Counter()
        self.documents = self.number = 0
        self.dtype: np.dtype[Any] | None = None

    def take(self, part: ImporterPart, path: Path) -> None:
        """Take all files of a format at a path."""
        for file in part.files(path):
            if isinstance(part, TokenFileImporter):
                self._link(part.read(file, self.tokenizer.vocab_size))
            elif isinstance(part, TokenListImporter):
                self._copy(part, file)

    def _is(self, dtype: np.dtype[Any], path: Path) -> None:
        """Remember the width of all shards."""
        if self.dtype not in (None, dtype):
            raise RunError(
                f"{path}: its tokens are {dtype.itemsize * 8} bits wide, those before were not. Import them into a store each."
            )
        self.dtype = dtype

    def _link(self, file: TokenFile) -> None:
        self._is(file.dtype, file.tokens_path)
        held = self._held([file.id_of(i) for i in range(len(file))])
        crcs, sha, sizes = self._scan(file)
        self.documents += len(file)
        self.dropped["empty"] += file.empty
        for name, chosen in zip(SPLITS, (~held, held), strict=True):
            if chosen.any():
                entry = _linked(self._stem(), file, np.flatnonzero(chosen), sizes, crcs, sha.copy())
                self.splits[name].append(entry)

    def _copy(self, part: TokenListImporter, file: Path) -> None:
        """Copy the token lists of a table into shards, in constant memory."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        self._is(dtype, file)
        waiting: dict[str, list[tuple[str, np.ndarray]]] = {name: [] for name in SPLITS}
        for record in part.read(file, self.tokenizer.vocab_size):
            if isinstance(record, Broken):
                self.dropped[record.rule] += 1
                continue
            self.documents += 1
            split = "heldout" if self._held([record[0]])[0] else "train"
            waiting[split].append((record[0], record[1].astype(dtype)))
            if len(waiting[split]) % 4096 == 0:
                self._flush(split, waiting[split], SHARD_TOKENS)
        for split, documents in waiting.items():
            self._flush(split, documents, 1)

    def _flush(self, split: str, documents: list[tuple[str, np.ndarray]], least: int) -> None:
        """Write a shard if ``least`` tokens are waiting."""
        lengths = np.array([len(ids) for _, ids in documents], np.int64)
        if lengths.sum() < least:
            return
        tokens = np.concatenate([ids for _, ids in documents])
        ends = np.cumsum(lengths)
        sizes = np.zeros(len(documents), np.int64)
        self._add_bytes(sizes, ends - lengths, ends, 0, tokens)
        meta = pa.table({"id": [name for name, _ in documents], "bytes": pa.array(sizes, pa.int64())})
        self.splits[split].append(write_shard(self.work / "shards", self.number, tokens, lengths, meta))
        self.number += 1
        documents.clear()

    def _held(self, ids: list[str]) -> np.ndarray:
        return np.array([self.heldout > 0 and is_heldout(i, self.heldout) for i in ids], bool)

    def _stem(self) -> Path:
        self.number += 1
        return self.work / "shards" / f"{self.number - 1:05d}"

    def _scan(self, file: TokenFile) -> tuple[np.ndarray, Any, np.ndarray]:
        """(checksums of the blocks, SHA-256 so far, UTF-8 bytes of every document) in one pass over the tokens."""
        sums, sha = Checksummer(), hashlib.sha256()
        sizes = np.zeros(len(file), np.int64)
        for first in range(0, file.count, CHUNK):
            offset = file.byte_offset + first * file.dtype.itemsize
            piece = np.fromfile(file.tokens_path, file.dtype, min(CHUNK, file.count - first), offset=offset)
            raw = memoryview(piece.data).cast("B")
            sums.update(raw)
            sha.update(raw)
            self._add_bytes(sizes, file.starts, file.ends, first, piece)
        return sums.finish(), sha, sizes

    def _add_bytes(
        self, sizes: np.ndarray, starts: np.ndarray, ends: np.ndarray, first: int, piece: np.ndarray
    ) -> None:
        """Add to every document the bytes of its tokens in a piece that begins at token ``first``."""
        low = int(np.searchsorted(ends, first, side="right"))
        high = int(np.searchsorted(starts, first + len(piece), side="left"))
        if high > low:
            a = np.clip(starts[low:high] - first, 0, len(piece))
            b = np.clip(ends[low:high] - first, 0, len(piece))
            sums = np.concatenate([[0], np.cumsum(self.tokenizer.token_bytes[piece])])
            sizes[low:high] += sums[b] - sums[a]

    def manifest(self, made_of: dict[str, Any]) -> dict[str, Any]:
        """The manifest. Raises `ConfigError` if a split has no documents."""
        return manifest_of(
            self.tokenizer,
            self.dtype or token_dtype(self.tokenizer.vocab_size),
            self.splits,
            made_of=made_of,
            read=self.documents + sum(self.dropped.values()),
            dropped=self.dropped,
            heldout=self.heldout,
        )


def _linked(
    stem: Path, file: TokenFile, chosen: np.ndarray, sizes: np.ndarray, crcs: np.ndarray, sha: Any
) -> dict[str, Any]:
    """Link the token file and write what belongs to the chosen documents of it."""
    stem.with_name(stem.name + ".tok").symlink_to(file.tokens_path.resolve())
    starts, ends = file.starts[chosen], file.ends[chosen]
    meta = pa.table({"id": [file.id_of(int(i)) for i in chosen], "bytes": pa.array(sizes[chosen], pa.int64())})
    entry = {
        "file": stem.name,
        "tokens": int((ends - starts).sum()),
        "docs": len(chosen),
        "bytes": int(sizes[chosen].sum()),
        "space": file.count,
        "offset": file.byte_offset,
        "imported_from": str(file.tokens_path.resolve()),
    }
    return entry | write_companions(stem, np.stack([starts, ends], axis=1), crcs, sha, meta)
