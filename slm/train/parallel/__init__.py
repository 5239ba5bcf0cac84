"""One process or several: which there are (`world`, needs torch), and how they share a model (`modes`)."""

from slm.train.parallel.modes import (
    Automatic,
    FullyShard,
    HybridShard,
    ParallelPart,
    ParallelSlot,
    Replicate,
    Spread,
    parallel,
)

__all__ = [
    "Automatic",
    "FullyShard",
    "HybridShard",
    "ParallelPart",
    "ParallelSlot",
    "Replicate",
    "Spread",
    "parallel",
]
