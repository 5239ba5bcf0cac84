"""Time by the clock on the wall and by the processors, in turns."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slm.bench.results import median


@dataclass(frozen=True)
class Timing:
    """What a piece of work took: seconds, seconds of processor time (children included), how much of it was done."""

    wall: float
    cpu: float
    amount: float
    began: float = 0.0
    """When, by `time.perf_counter`."""

    @property
    def per_cpu(self) -> float:
        """Amount per second of processor time."""
        return self.amount / max(self.cpu, 1e-9)

    @property
    def per_wall(self) -> float:
        """Amount per second."""
        return self.amount / max(self.wall, 1e-9)


def timed(work: Callable[[], float], ready: Callable[[], None] = lambda: None) -> Timing:
    """Do work, which returns its amount. Children count once they have ended. ``ready`` is called before the clock starts."""
    gc.collect()
    ready()
    began, cpu = time.perf_counter(), _cpu()
    amount = work()
    return Timing(time.perf_counter() - began, _cpu() - cpu, amount, began)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def in_turns(contestants: Mapping[str, Callable[[], Timing]], repeats: int) -> dict[str, list[Timing]]:
    """Every contestant once, then every one again, so that what disturbs the machine disturbs all of them."""
    found: dict[str, list[Timing]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            found[name].append(run())
    return found


def rates(timings: list[Timing], scale: float = 1e6) -> tuple[float, float]:
    """Medians of (amount per second of processor time, amount per second), in millions."""
    return median([t.per_cpu for t in timings]) / scale, median([t.per_wall for t in timings]) / scale


def timing_of(report: Mapping[str, Any]) -> Timing:
    """The timing in what a job of `slm.bench.jobs` reported."""
    return Timing(report["wall"], report["cpu"], report["amount"], report.get("began", 0.0))
