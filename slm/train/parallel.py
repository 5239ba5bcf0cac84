"""One process or several, applied from outside the model.

A single process needs no launcher. Under ``torchrun`` every process joins a group (NCCL on CUDA, gloo
elsewhere) and the model is wrapped in DDP. Tensor, pipeline and context parallelism are left out on purpose:
below 5B parameters they buy little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slm.config.errors import ConfigError, suggest


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes, in place; nothing to do alone."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says yes; the same answer everywhere."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Synchronise gradients across processes."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """``auto`` is cuda, else mps, else cpu. Raises `ConfigError` for a device that isn't there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(d for d in available if available[d]) if wanted == "auto" else wanted
    if name not in available:
        raise ConfigError(f"There is no device {wanted!r}. {suggest(wanted, ['auto', *available])}")
    if not available[name]:
        raise ConfigError(
            f"impl.device={name}: torch finds no such device here. Use impl.device=auto; `slm doctor` shows what there is."
        )
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, or be alone."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()
