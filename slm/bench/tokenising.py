"""JSON lines to a finished store, beside datatrove's DocumentTokenizer on the same files with the same tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from slm.bench.clock import Timing, rates, timing_of
from slm.bench.corpus import Work
from slm.bench.machine import version
from slm.bench.results import Result, Target, result
from slm.bench.slices import Contestant, in_slices
from slm.config.cores import usable_cores
from slm.config.errors import RunError
from slm.data.tokenizer import Tokenizer, why_not

TARGETS = {"hf": 1.0, "tiktoken": 8.0, "gigatoken": 20.0}
"""How many times as many tokens per second as datatrove."""
SLICE_S = 1.0
"""How long datatrove goes on before the others' turn; those have shorter ones, so that all end at about the same time."""


def run(work: Work) -> Iterator[Result]:
    """A result for every backend that can be had, with one worker and with as many as there are cores."""
    text, tokenizer = work.text(), work.tokenizer()
    opened = Tokenizer.from_bytes(tokenizer.read_bytes())
    backends = {name: why_not(opened, name) for name in TARGETS}
    peer = "datatrove" if version("datatrove") and version("orjson") else None  # its reader of JSON lines needs orjson
    for workers in sorted({1, usable_cores()}):
        same = {"text": str(text), "tokenizer": str(tokenizer), "workers": workers}
        jobs = {
            name: Contestant("tokenise", same | {"backend": name}, SLICE_S / TARGETS[name])
            for name, missing in backends.items()
            if not missing
        }
        if peer:
            jobs[peer] = Contestant("datatrove", same, SLICE_S)
        timings: dict[str, list[Timing]] = {name: [] for name in jobs}
        for _ in range(work.repeats):
            for name, report in _run(work, jobs).items():
                timings[name].append(timing_of(report))
        counts = {name: {t.amount for t in found} for name, found in timings.items()}
        if len(set.union(*counts.values())) != 1:
            raise RunError(f"The same text became different numbers of tokens: {counts}.")
        yield from _results(backends, timings, workers, next(iter(counts.values())).pop(), peer)


def _results(
    backends: dict[str, str], timings: dict[str, list[Timing]], workers: int, tokens: float, peer: str | None
) -> Iterator[Result]:
    theirs = rates(timings[peer]) if peer else None
    for name, missing in backends.items():
        if missing:
            yield result(f"tokenise, {name}, workers={workers}", None, "Mtok/s", note=f"not measured: {missing}")
            continue
        ours = rates(timings[name])
        note = (
            f"{tokens:,.0f} tokens written by every backend and by datatrove, all on the same cores in slices of a second "
            "and less in turn"
            if peer
            else "datatrove isn't installed, or orjson, which it needs"
        )
        yield result(
            f"tokenise, {name}, workers={workers}",
            ours[0],
            "Mtok/s",
            peer=peer or "datatrove (not installed)",
            peer_value=theirs and theirs[0],
            target=Target(">=", TARGETS[name], "ratio"),
            wall=(ours[1], theirs and theirs[1]),
            note=note,
        )


def _run(work: Work, jobs: dict[str, Contestant]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="out-", dir=work.root) as folder:
        return in_slices(
            {n: replace(job, arguments={**job.arguments, "out": f"{folder}/{n}"}) for n, job in jobs.items()}
        )
