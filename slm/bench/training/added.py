"""What our loop adds to the bare work, and what records and checkpoints add to the loop, as results."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from slm.bench.jobs import run_job
from slm.bench.results import Result, Target, median, result
from slm.bench.training.job import LOG_EVERY, SAVE_EVERY, Job


def overhead(job: Job, repeats: int) -> Iterator[Result]:
    """What the loop adds to forward, backward and optimiser step, in per cent of those."""
    found = _overhead(job, "overhead", repeats)
    loop, bare, inside, outside = (found[name] for name in ("loop", "bare", "inside", "outside"))
    yield result(
        "overhead, the loop over the bare work",
        100 * outside["cpu"] / inside["cpu"],
        "%",
        target=Target("<", 3.0),
        note=(
            "processor time of a step outside of forward, backward and optimiser step: loader, clipping, the check for bad gradients, "
            f"records with norms; by the wall {100 * outside['wall'] / inside['wall']:.1f}%. In turns with a bare loop: "
            f"{_more(loop['cpu'], bare['cpu']):+.1f}%, by the wall {_more(loop['wall'], bare['wall']):+.1f}%, which is the machine's noise where it "
            f"is far from the first. A bare step takes {bare['cpu'] * 1e3:.0f} ms; {job.shape.params(job.vocab):,} parameters"
        ),
    )


def records(job: Job, repeats: int) -> Iterator[Result]:
    """What records and checkpoints add to a loop without them, in per cent of a step."""
    found = _overhead(job, "watched", repeats)
    off, written, saves, inside = (found[name] for name in ("off", "records", "saves", "inside"))
    share, of = LOG_EVERY / SAVE_EVERY, {c: inside[c] + off[c] for c in ("cpu", "wall")}
    kept = {c: 100 * (written[c] - off[c]) / of[c] for c in of}
    cost = {c: kept[c] + 100 * share * (saves[c] - written[c]) / of[c] for c in of}
    yield result(
        "overhead, records and checkpoints",
        cost["cpu"],
        "%",
        target=Target("<", 2.0),
        note=(
            f"records every {LOG_EVERY} steps ({kept['cpu']:+.2f}%, with the counting at every step) and a checkpoint every {SAVE_EVERY} (a "
            f"save costs {(saves['cpu'] - written['cpu']) * 1e3:.0f} ms of the processors' time, {(saves['wall'] - written['wall']) * 1e3:.0f} ms "
            f"by the wall). Both by the wall: {cost['wall']:+.2f}%. {job.shape.params(job.vocab):,} parameters"
        ),
    )


def _overhead(job: Job, name: str, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of what a job of `slm.bench.training.overhead` reports."""
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="out-", dir=job.root) as out:
            found.append(run_job("train", trainer=name, job={**job.as_dict(), "out": out}))
    return {
        part: {c: median([one[part][c] for one in found]) for c in ("cpu", "wall")}
        for part, value in found[0].items()
        if isinstance(value, dict)
    }


def _more(a: float, b: float) -> float:
    """Per cent that a is more than b."""
    return 100 * (a / b - 1)
