"""What a teacher said of the rows of a plan, on disk.

::

    DIR/cache.json            what it is of: plan, teacher, tokenizer, temperature, and its sizes
    DIR/shards/00000.rows     records of ``rows_per_shard`` rows of the plan, one after the other
    DIR/shards/00000.crc      CRC-32 per 64 KiB block of them

Row n of the plan is record n: any batch, at any world size and after any resume, is read by its rows' numbers. A record has,
for the T targets of its row, the ids of the k most probable tokens (T x k, u16 or u32), their log-probabilities at the
cache's temperature (T x k, fp16, most probable first), and the log-probability of all other tokens together (T, fp16). fp16
rounds a log-probability to one part in 2,048; what is read is scaled to a sum of one again.

Bytes per token of training text: 4 k + 2 (6 k + 2 where the vocabulary is above 65,536).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.config.errors import ConfigError, RunError
from slm.data.store.checked import CheckedFile, blocks_of
from slm.model.divergence import Outcomes

FORMAT = 1
SMALLEST = float(np.finfo(np.float16).min)


def read_header(path: Path | str) -> dict[str, Any]:
    """What a cache is of. Raises `ConfigError` if there is none."""
    file = Path(path) / "cache.json"
    try:
        header: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"train.distill.cache={path}: no cache of a teacher there ({file}: {error}). Make one with `slm distill cache`."
        ) from None
    if header.get("format") != FORMAT:
        raise ConfigError(
            f"{file}: format {header.get('format')!r}; this slm reads format {FORMAT}. Make the cache again."
        )
    return header


class Layout:
    """Sizes that follow from a header."""

    def __init__(self, header: dict[str, Any]) -> None:
        self.seq_len, self.top_k = int(header["seq_len"]), int(header["top_k"])
        self.rows, self.rows_per_shard = int(header["rows"]), int(header["rows_per_shard"])
        self.ids_dtype = np.dtype("<u2" if int(header["vocab"]) <= 1 << 16 else "<u4")
        self.ids_bytes = self.seq_len * self.top_k * self.ids_dtype.itemsize
        self.row_bytes = self.ids_bytes + 2 * self.seq_len * (self.top_k + 1)

    @property
    def shards(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> range:
        """Rows of the plan that a shard holds."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.rows))

    def pack(self, known: Outcomes) -> bytes:
        """Records of rows; ``known`` is of (rows x seq_len) targets."""
        rows = len(known.ids_NK) // self.seq_len
        ids = known.ids_NK.cpu().numpy().astype(self.ids_dtype).reshape(rows, -1)
        logq = known.logq_NM.float().clamp(min=SMALLEST).cpu().numpy().astype("<f2")
        top, rest = (np.ascontiguousarray(part).reshape(rows, -1) for part in (logq[:, :-1], logq[:, -1:]))
        return np.concatenate([part.view(np.uint8) for part in (ids, top, rest)], axis=1).tobytes()

    def unpack(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, log-probabilities) of a record: (T, k) and (T, k + 1), in the order of `Outcomes`."""
        ids = raw[: self.ids_bytes].view(self.ids_dtype).reshape(self.seq_len, self.top_k)
        logq = raw[self.ids_bytes :].view("<f2")
        top, rest = logq[: -self.seq_len].reshape(self.seq_len, self.top_k), logq[-self.seq_len :, None]
        return ids.astype(np.int64), np.concatenate((top, rest), 1).astype(np.float32)


class TeacherCache:
    """A cache, for reading."""

    def __init__(self, path: Path | str) -> None:
        self.path, self.header = Path(path), read_header(path)
        self.layout = Layout(self.header)
        self._shard = lru_cache(maxsize=64)(self._open)

    def read(self, rows: range) -> Outcomes:
        """What the teacher said of some rows of the plan, row after row.

        Raises:
            RunError: a shard is missing or damaged.
        """
        records = [self.layout.unpack(self._record(row)) for row in rows]
        ids, logq = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*records, strict=True))
        return Outcomes(ids, logq.log_softmax(-1))

    def verify(self) -> None:
        """Check every block. Raises `RunError` at the first fault."""
        for shard in range(self.layout.shards):
            self._open(shard).verify()

    def _record(self, row: int) -> np.ndarray:
        if not 0 <= row < self.layout.rows:
            raise RunError(f"{self.path} has rows 0 to {self.layout.rows - 1:,} of the plan, not {row:,}.")
        shard, place = divmod(row, self.layout.rows_per_shard)
        start = place * self.layout.row_bytes
        # Not checked for alignment: numpy reads fp16 and u16 from anywhere.
        return self._shard(shard).view(start, start + self.layout.row_bytes)

    def _open(self, shard: int) -> CheckedFile:
        file, sums = shard_files(self.path, shard)
        size = len(self.layout.rows_of(shard)) * self.layout.row_bytes
        found = file.stat().st_size if file.is_file() else None
        expected = 4 * blocks_of(size)
        if found != size or not sums.is_file() or sums.stat().st_size != expected:
            why = "isn't there" if found is None else f"has {found} bytes instead of {size}, or no checksums"
            raise RunError(f"{file} {why}: the cache isn't finished. Run its `slm distill cache` command again.")
        return CheckedFile(file, size, np.frombuffer(sums.read_bytes(), "<u4"))


def shard_files(path: Path, shard: int) -> tuple[Path, Path]:
    """Records and checksums of a shard."""
    stem = path / "shards" / f"{shard:05d}"
    return stem.with_suffix(".rows"), stem.with_suffix(".crc")


def fewer(known: Outcomes, top_k: int) -> Outcomes:
    """The same with fewer tokens told apart: those that fall away join the rest. Exact."""
    kept, rest = known.logq_NM[:, :top_k], known.logq_NM[:, top_k:].logsumexp(-1, keepdim=True)
    return Outcomes(known.ids_NK[:, :top_k], torch.cat((kept, rest), 1))


def as_tensors(known: Outcomes, device: torch.device) -> tuple[Tensor, Tensor]:
    """On a device, without waiting for it."""
    return known.ids_NK.to(device, non_blocking=True), known.logq_NM.to(device, non_blocking=True)
