"""The processes of a run: one alone, or those that ``torchrun`` started."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slm.config.errors import ConfigError, RunError, suggest

CONTROL_TIMEOUT = timedelta(days=1)
"""How long processes wait for each other's short messages: while the main one evaluates and exports, for hours perhaps. One that has ended is
noticed at once, by its connection."""


_joins = itertools.count()
"""Which join of this process comes next. Processes join together, so it is the same number in all."""


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device
    control: Any = field(default=None, repr=False)
    """A group of the hosts for short messages: gloo, so that nothing waits for a device."""

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
        votes = torch.tensor(float(flag))
        dist.all_reduce(votes, group=self.control)
        return bool(votes > 0)

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier(group=self.control)


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
    """Join the process group that torchrun describes in the environment, or be alone. A sweep does so once per run.

    Raises:
        RunError: another process of the group is gone.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    # A place of its own in the store for every join: torch calls the groups of each by the same names, and a process that is ahead
    # would find the addresses that the others had in the group before, and wait there for ever.
    store = dist.PrefixStore(f"join-{next(_joins)}", _store())
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size, place, dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT))
    except RuntimeError as error:
        if not _lost_peer(error):
            raise
        raise RunError(
            f"Process {rank} of {size} lost the connection to another one of this run, which has ended or hangs; this one ends, too. "
            f"The checkpoints are whole: the same command goes on from the newest one. ({str(error).splitlines()[0][:200]})"
        ) from error
    finally:
        dist.destroy_process_group()


@functools.cache
def _store() -> dist.Store:
    """Where the processes that torchrun started leave each other word. One connection lasts for all joins."""
    store: dist.Store
    store, _, _ = next(dist.rendezvous("env://"))
    return store


def _lost_peer(error: RuntimeError) -> bool:
    """Whether an error says that another process can't be reached. gloo has no type of its own for that."""
    text = str(error)
    return isinstance(error, dist.DistBackendError) or ("gloo" in text and ("Connection" in text or "imed out" in text))
