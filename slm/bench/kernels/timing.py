"""How long a piece of work takes on a device: medians of many runs, contestants in turns, caches cold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple

import torch

COLD = 256 << 20
"""Bytes that are written before each run on a GPU: several times its L2 cache."""


class Time(NamedTuple):
    """Milliseconds: the median, and what a fifth of the runs stay below and above."""

    median: float
    p20: float
    p80: float


class Clock:
    """Times work on a device. ``budget``: seconds per contestant, within ``least`` and ``most`` runs."""

    def __init__(self, device: torch.device, budget: float, least: int = 5, most: int = 60) -> None:
        self.device, self.budget, self.least, self.most = device, budget, least, most
        self.cold = torch.empty(COLD, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def once(self, work: Callable[[], object]) -> float:
        """Milliseconds of one run."""
        if self.cold is None:
            started = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - started)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cold.zero_()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def in_turns(self, contestants: Mapping[str, Callable[[], object]]) -> dict[str, Time]:
        """Every contestant once, then every one again; two rounds to warm up."""
        for work in contestants.values():
            self.once(work)
        slowest = max(self.once(work) for work in contestants.values())
        rounds = max(self.least, min(self.most, round(1e3 * self.budget / max(slowest, 1e-3))))
        found: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, work in contestants.items():
                found[name].append(self.once(work))
        return {name: _summary(times) for name, times in found.items()}


def _summary(times: list[float]) -> Time:
    fifths = quantiles(times, n=5, method="inclusive")
    return Time(median(times), fifths[0], fifths[-1])
