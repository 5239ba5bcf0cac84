"""One process or several."""

from slm.train.parallel.modes import Automatic, FullyShard, HybridShard, ParallelSlot, Replicate, Spread, parallel
from slm.train.parallel.world import World, join_world, pick_device

__all__ = [
    "Automatic",
    "FullyShard",
    "HybridShard",
    "ParallelSlot",
    "Replicate",
    "Spread",
    "World",
    "join_world",
    "parallel",
    "pick_device",
]
