"""A process of ``torchrun`` that joins the others several times, as a sweep does; the main one is always the last to come.

python -m torch.distributed.run --nproc-per-node 2 joining_worker.py
"""

from __future__ import annotations

import time

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
    for number in range(3):
        with join_world("cpu") as world:
            print(f"join {number}, rank {world.rank}: {sums(world, number)}", flush=True)
            world.barrier()
        if world.main:
            time.sleep(0.5)  # as one that prints what came out
