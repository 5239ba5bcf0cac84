"""A process of ``torchrun`` that joins the others several times, as a sweep does; the main one is always the last to come.

python -m torch.distributed.run --nproc-per-node 2 joining_worker.py FOLDER

Each process writes what it found to a file of its own: on a shared pipe, two processes' lines can run into one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from slm.train.parallel.world import World, join_world


def sums(world: World, number: int) -> list[float]:
    """What each kind of group adds up: the default one, and that of a mesh as fsdp makes it."""
    mesh = init_device_mesh("cpu", (world.size,), mesh_dim_names=("shard",))
    of_all, of_mesh = torch.tensor(float(number + world.rank)), torch.tensor(1.0)
    world.sum(of_all)
    dist.all_reduce(of_mesh, group=mesh.get_group())
    return [of_all.item(), of_mesh.item()]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for number in range(3):
        with join_world("cpu") as world:
            (folder / f"join-{number}-rank-{world.rank}").write_text(str(sums(world, number)))
            world.barrier()
        if world.main:
            time.sleep(0.5)  # as one that prints what came out
