"""Resuming: the first batch of a run that goes on in the middle of a plan of ten billion tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from slm.bench.corpus import MEAN_TOKENS, Lengths, Work, log_normal
from slm.bench.loading import ROWS, SEQ_LEN
from slm.bench.machine import version
from slm.bench.results import Result, Target, median, result
from slm.data.loader import Loader
from slm.data.plan import Plan

TOKENS = 10_000_000_000
FULL_MB = 50
"""Megabytes asked for from which on the plan has all ten billion tokens; with fewer it is that much smaller."""


def run(work: Work) -> Iterator[Result]:
    """Milliseconds from nothing to the first batch (the plan is opened, too), and bytes of the state."""
    tokens = int(TOKENS * min(1.0, work.mb / FULL_MB))
    documents = Lengths(log_normal(tokens // MEAN_TOKENS))
    cache = work.root / "plans"
    state = json.loads(json.dumps(_middle(_plan(documents, cache))))
    times = []
    for _ in range(max(3, work.repeats)):
        start = time.perf_counter()
        with Loader(_plan(documents, cache), ROWS) as loader:
            loader.restore(state)
            next(loader)
            times.append((time.perf_counter() - start) * 1e3)
    theirs = _grain(work) if version("grain") else (None, None)
    peer = "Grain concat" if theirs[0] is not None else "Grain (not installed)"
    note = (
        f"{tokens:,} tokens in {len(documents):,} documents; the packing's cache was made before. Grain's are of the loader's store of "
        f"{work.mb:g} M tokens, its index in memory"
    )
    yield result(
        "resume, first batch",
        median(times),
        "ms",
        peer=peer,
        peer_value=theirs[0],
        target=Target("<", 100),
        less_is_better=True,
        note=note,
    )
    yield result(
        "resume, state",
        len(json.dumps(state)),
        "bytes",
        peer=peer,
        peer_value=theirs[1],
        target=Target("<", 1024),
        less_is_better=True,
        note="for any number of processes; Grain's is per process and for the same number of them only",
    )


def _plan(documents: Lengths, cache: Any) -> Plan:
    return Plan([("made", documents)], seq_len=SEQ_LEN, eot=0, cache_dir=cache)


def _middle(plan: Plan) -> dict[str, Any]:
    with Loader(plan, ROWS, next_row=plan.rows_per_epoch // 2 // ROWS * ROWS) as loader:
        next(loader)
        return dict(loader.state())


def _grain(work: Work) -> tuple[float, int]:
    from slm.bench.with_grain import Documents, dataset, resume

    documents = Documents(work.token_store(2 * work.mb).open())
    return resume(dataset(documents, "concat", seq_len=SEQ_LEN, rows=ROWS, threads=0), batches=5)
