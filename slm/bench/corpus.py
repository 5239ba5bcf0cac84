"""What is measured on: JSON lines that look like The Pile, a tokenizer, and stores of made-up tokens."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from slm.data.plan.documents import MemoryDocuments
from slm.data.sources.lookalike import write_lookalike
from slm.data.store import Split
from slm.data.store.shard import Shard, write_shard
from slm.data.tokenizer import BytePairs

VOCAB, SMALL_VOCAB = 32_768, 4096
MEAN_TOKENS, SIGMA = 1000, 0.9
"""Made-up documents: log-normal lengths, as of web text."""


@dataclass(frozen=True)
class Work:
    """A folder for everything that a run of the benchmarks makes, and how much that is."""

    root: Path
    mb: float
    repeats: int

    @property
    def vocab(self) -> int:
        """32,768, or 4,096 where there is too little text to learn so many tokens from."""
        return VOCAB if self.mb >= 10 else SMALL_VOCAB

    def text(self, mb: float | None = None) -> Path:
        """A folder of JSON lines with about so many megabytes of text, in four files or more."""
        mb = self.mb if mb is None else mb
        folder = self.root / f"text-{mb:g}"
        if not folder.exists():
            made = write_lookalike("pile", self.root / f"text-{mb:g}.raw", mb)
            partial = self.root / f"text-{mb:g}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for number, file in enumerate(made.files):
                with file.open("rb") as raw, (partial / f"{number:03d}.jsonl").open("wb") as out:
                    shutil.copyfileobj(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), out)
            shutil.rmtree(made.root)
            partial.rename(folder)
        return folder

    def tokenizer(self) -> Path:
        """A byte-level BPE with the pre-tokenizer of Qwen2, trained on a look-alike of another seed."""
        path = self.root / f"tokenizer-{self.vocab}.json"
        if not path.exists():
            from slm.data.sources.prose import Prose

            part = BytePairs(vocab=self.vocab, sample_bytes=20_000_000 if self.vocab == VOCAB else 2_000_000)
            path.write_bytes(part.load(lambda: (text for text, _ in Prose(seed=1).documents())).to_bytes())
        return path

    def token_store(self, megabytes: float) -> "MadeStore":
        """A shard of random u16 tokens, written once."""
        folder = self.root / f"tokens-{megabytes:g}"
        count = max(1, int(megabytes * 1e6 / 2 / MEAN_TOKENS))
        lengths = log_normal(count)
        dtype = np.dtype("<u2")
        entry_file = folder / "entry.npy"
        if not entry_file.exists():
            shutil.rmtree(folder, ignore_errors=True)
            tokens = np.random.default_rng(0).integers(1, VOCAB, int(lengths.sum()), dtype=np.uint16)
            meta = pa.table({"id": [str(i) for i in range(count)], "bytes": lengths * 4})
            entry = write_shard(folder / "shards", 0, tokens, lengths, meta)
            np.save(entry_file, np.array([entry], dtype=object), allow_pickle=True)
        entry = np.load(entry_file, allow_pickle=True)[0]
        return MadeStore(folder, entry, dtype)


@dataclass(frozen=True)
class MadeStore:
    """A store of one shard without a tokenizer."""

    root: Path
    entry: dict[str, Any]
    dtype: np.dtype[Any]

    def open(self) -> Split:
        """The documents, nothing of them checked yet."""
        return Split([Shard(self.root, self.entry, self.dtype)], str(self.entry["sha256"]))


def log_normal(count: int, mean: float = MEAN_TOKENS, seed: int = 0) -> np.ndarray:
    """Lengths of documents: log-normal with the given mean, int64, at least 1."""
    draws = np.random.default_rng(seed).lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, count)
    return np.maximum(1, draws.astype(np.int64))


class Lengths(MemoryDocuments):
    """Documents of which only the lengths are real; their tokens repeat one stretch of numbers."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths, self._offsets = lengths, np.cumsum(lengths) - lengths
        self._tokens = np.arange(1 << 20, dtype=np.uint16)
        self.content_hash = hashlib.sha256(lengths.tobytes()).hexdigest()

    def take(self, offset: int, length: int) -> np.ndarray:
        return self._tokens[:length]
