"""Packing: how full rows are, what is lost, and how long it takes, beside Grain's first-fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np

from slm.bench.clock import Timing, timed
from slm.bench.corpus import Lengths, Work, log_normal
from slm.bench.loading import ROWS, SEQ_LEN
from slm.bench.machine import version
from slm.bench.results import Result, Target, median, result
from slm.data.plan.index import Index, index_of

PER_MB = 20_000
"""Documents for every megabyte that was asked for: a million for 50."""
GRAIN_DOCUMENTS = 20_000
"""Documents that Grain packs: how full its rows are doesn't depend on how many there are."""


def run(work: Work) -> Iterator[Result]:
    """Fill and loss at rows of 2,048, and documents per second of processor time, writing the cache included."""
    count = int(PER_MB * work.mb)
    documents = Lengths(log_normal(count))
    indices: list[Index] = []
    timings: list[Timing] = []
    for _ in range(work.repeats):
        cache = work.root / "packings"
        shutil.rmtree(cache, ignore_errors=True)

        def build(cache: object = cache) -> float:
            indices.append(
                index_of(
                    documents, split="train", seq_len=SEQ_LEN, policy="best_fit", window=16384, cache_dir=str(cache)
                )
            )
            return float(len(documents))

        timings.append(timed(build))
        shutil.rmtree(cache, ignore_errors=True)
    index = indices[-1]
    places = index.rows * SEQ_LEN
    note = f"{count:,} made-up documents of log-normal lengths, mean 1,000 tokens; windows of 16,384 documents"
    fill, lost = _grain(work) if version("grain") else (None, None)
    peer = "Grain first-fit" if fill is not None else "Grain (not installed)"
    yield result(
        f"pack, fill of rows of {SEQ_LEN}",
        100 * index.kept / places,
        "%",
        peer=peer,
        peer_value=fill,
        target=Target(">=", 99.9),
        note=note,
    )
    yield result(
        "pack, predictions lost",
        100 * index.dropped / index.predictions,
        "%",
        peer=peer,
        peer_value=lost,
        target=Target("==", 0),
        note="Grain's first-fit has no place for documents longer than a row: they are dropped",
    )
    cpu, wall = (median([getattr(t, name) for t in timings]) / 1e6 for name in ("per_cpu", "per_wall"))
    yield result("pack, plan build", cpu, "Mdoc/s", target=Target(">=", 1), wall=(wall, None), note=note)


def _grain(work: Work) -> tuple[float, float]:
    """(percent of places filled, percent of predictions dropped) of Grain's first-fit."""
    from slm.bench.with_grain import IGNORED, dataset

    lengths = log_normal(min(GRAIN_DOCUMENTS, int(PER_MB * work.mb)), seed=1)
    data = dataset(_Zeros(lengths), "first-fit", seq_len=SEQ_LEN, rows=ROWS, threads=0)  # type: ignore[arg-type]
    places = predictions = 0
    for batch in data:
        places += batch["tokens"].numel()
        predictions += int((batch["labels"] != IGNORED).sum())
    long = lengths > SEQ_LEN
    return 100 * predictions / places, 100 * float(lengths[long].sum() / lengths.sum())


class _Zeros:
    """Documents of zeros with an end-of-text token behind."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths.tolist()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.zeros(self._lengths[index] + 1, dtype=np.int64)
