"""The peer of the loader: Google's Grain, composed as torchtitan composes it (its dataloader of August 2026).

Documents that are tokenised already, from a file in memory: shuffle, shift into inputs and labels, read, pack, batch,
and turn into tensors. It gives tokens, labels and positions; neither ``cu_seqlens`` nor checksums.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import numpy as np

from slm.data.store import Split

Packer = Literal["concat", "first-fit"]
IGNORED = -100


class Documents:
    """Documents of a store with an end-of-text token behind, without checks: the fastest source that Grain could have."""

    def __init__(self, split: Split, limit: int | None = None) -> None:
        starts, ends = split.bounds(0, limit)
        self._starts, self._ends = starts.tolist(), ends.tolist()
        self._tokens = np.memmap(split.shards[0].path(".tok"), split.shards[0].dtype, "r").view(np.ndarray)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> np.ndarray:
        start, end = self._starts[index], self._ends[index]
        document = np.zeros(end - start + 1, dtype=np.int64)
        document[:-1] = self._tokens[start:end]
        return document


def dataset(documents: Documents, packer: Packer, *, seq_len: int, rows: int, threads: int | None) -> Any:
    """Batches of (tokens, positions, labels), int64 tensors of shape (rows, seq_len); ``threads`` None: Grain's default."""
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)  # it misses jax, which nobody here needs
    import grain
    from grain import experimental

    longest = seq_len if packer == "first-fit" else None  # it can't place a longer one
    data = grain.MapDataset.source(documents).shuffle(seed=0).map(_shifted)
    data = data.filter(lambda f: len(f["tokens"]) > 0 and (longest is None or len(f["tokens"]) <= longest))
    options = grain.ReadOptions() if threads is None else grain.ReadOptions(num_threads=threads, prefetch_buffer_size=0)
    lengths = {"tokens": seq_len, "labels": seq_len}
    stream = data.to_iter_dataset(options)
    if packer == "concat":
        packed = experimental.ConcatThenSplitIterDataset(stream, length_struct=lengths, meta_features=())
    else:
        packed = experimental.FirstFitPackIterDataset(
            stream, length_struct=lengths, num_packing_bins=rows, meta_features=("labels",), seed=0
        )
    return packed.batch(rows, drop_remainder=True).map(_tensors)


def _shifted(document: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": document[:-1], "labels": document[1:]}


def _tensors(features: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    padding = features["tokens_segment_ids"] == 0
    labels = np.where(padding, IGNORED, features["labels"])
    return {
        "tokens": torch.as_tensor(features["tokens"], dtype=torch.long),
        "positions": torch.as_tensor(features["tokens_positions"], dtype=torch.long),
        "labels": torch.as_tensor(labels, dtype=torch.long),
    }


def read(data: Any, tokens: int) -> float:
    """Read batches until there were so many places for tokens, padding included, or no more; returns the predictions."""
    placed, predictions = 0, 0
    for batch in data:
        placed += batch["tokens"].numel()
        predictions += int((batch["labels"] != IGNORED).sum())
        if placed >= tokens:
            break
    return float(predictions)


def resume(data: Any, batches: int) -> tuple[float, int]:
    """Milliseconds to the first batch of a new iterator that takes up another's state, and bytes of that state."""
    first = iter(data)
    for _ in range(batches):
        next(first)
    state = first.get_state()
    start = time.perf_counter()
    second = iter(data)
    second.set_state(state)
    next(second)
    return (time.perf_counter() - start) * 1e3, len(json.dumps(state, default=str))
