"""One of four processes: ``python sharded_worker.py RANK STORE FOLDER``. Writes a state in several shardings, reads each in all others.

Leaves ``FOLDER/report.json`` with what differed; a process that saw no difference adds nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from slm import checkpoint
from slm.config.errors import RunError

WEIGHTS = {"up": (5, 3), "down": (3, 7), "one": (1, 4), "norm": (6,), "stack": (3, 4, 2)}
"""Nothing of this is a multiple of 2: uneven rows, ranks with nothing of a tensor, a vector, a stack."""
Make = Callable[[int], dict[str, dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class Group:
    """The processes that save together."""

    rank: int
    size: int
    group: Any = None

    def any(self, flag: bool) -> bool:
        value = torch.tensor(float(flag))
        if self.size > 1:
            dist.all_reduce(value, group=self.group)
        return bool(value)


def model(seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module = torch.nn.Module()
    for name, shape in WEIGHTS.items():
        module.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=generator)))
    return module


def state_of(module: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Weights, and a state of each: a moment in bf16, sharded alike, and a count that all have."""
    named = dict(module.named_parameters())
    moments = {f"{n}/m": (p.detach() * 3).bfloat16() for n, p in named.items()}
    counts = {f"{n}/step": torch.tensor(len(n), dtype=torch.int64) for n in named}
    return {"model": named, "optimizer": moments | counts}


def plain(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    return state_of(model(seed))


def fsdp(mesh: DeviceMesh) -> Make:
    def make(seed: int) -> dict[str, dict[str, torch.Tensor]]:
        module = model(seed)
        fully_shard(module, mesh=mesh)
        return state_of(module)

    return make


def columns(mesh: DeviceMesh) -> Make:
    """Cut along the last dimension, as an optimiser's state may be."""

    def make(seed: int) -> dict[str, dict[str, torch.Tensor]]:
        return {
            g: {n: distribute_tensor(t.detach(), mesh, [Shard(t.ndim - 1) if t.ndim else Replicate()]) for n, t in named.items()}
            for g, named in plain(seed).items()
        }  # fmt: skip

    return make


def local(t: torch.Tensor) -> torch.Tensor:
    t = t.detach()
    return t.to_local() if hasattr(t, "to_local") else t


def compare(path: Path, make: Make, seed: int) -> list[str]:
    """Names of tensors that come back otherwise than they were written."""
    want, got = make(seed), make(seed + 1000)
    for named in got.values():
        for t in named.values():
            local(t).zero_()
    for group, named in got.items():
        checkpoint.read_into(path, group, named)
    return [
        f"{group}/{name}" for group, named in want.items() for name, t in named.items()
        if not torch.equal(local(t), local(got[group][name])) or t.dtype != got[group][name].dtype
    ]  # fmt: skip


def main(rank: int, store: str, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)
    pair = dist.new_group([0, 1])
    ways: dict[str, tuple[Group | None, Make | None]] = {
        "plain": (Group(0, 1) if rank == 0 else None, plain),
        "replicas": (Group(rank, 4), plain),
        "hsdp": (Group(rank, 4), fsdp(init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))),
        "columns": (Group(rank, 4), columns(init_device_mesh("cpu", (4,)))),
    }
    two = DeviceMesh("cpu", [0, 1])
    ways["fsdp of 2"] = (Group(rank, 2, pair), fsdp(two)) if rank < 2 else (None, None)
    found: list[str] = []
    for seed, (way, (group, make)) in enumerate(ways.items()):
        if group is not None and make is not None:
            saver = checkpoint.Saver(folder / way, world=group, asynchronous=seed % 2 == 0)
            for step in (1, 2):  # the second finds the first one's buffers
                tensors = make(seed + step)
                saver.save(step, tensors, {"step": step}, "name: x\n", b"{}")
                for named in tensors.values():
                    for t in named.values():
                        local(t).fill_(0)  # training goes on
            saver.wait() if saver.asynchronous else None
        dist.barrier()
    for seed, way in enumerate(ways):
        path = checkpoint.latest(folder / way)
        for other, (group, make) in ways.items():
            if group is not None and make is not None:
                found += [f"{way} -> {other}: {name} on {rank}" for name in compare(path, make, seed + 2)]
    dist.barrier()
    found += failing(rank, folder)
    gathered: list[Any] = [None] * 4
    dist.all_gather_object(gathered, found)
    if rank == 0:
        (folder / "report.json").write_text(json.dumps([line for lines in gathered for line in lines]))
    dist.destroy_process_group()


def failing(rank: int, folder: Path) -> list[str]:
    """Process 2 can't write its part: all are told, nothing is left, and the next save works."""
    from slm.checkpoint import saver as module

    mesh = init_device_mesh("cpu", (4,))
    saver = checkpoint.Saver(folder / "failing", world=Group(rank, 4))
    real = module.write_groups

    def full(*arguments: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device", "model-of-2")

    tensors = {"model": {"w": distribute_tensor(torch.arange(9.0), mesh, [Shard(0)])}}
    saver.save(1, tensors, {"step": 1}, "", b"{}")
    saver.wait()
    if rank == 2:
        module.write_groups = full
    saver.save(2, tensors, {"step": 2}, "", b"{}")
    said = ""
    try:
        saver.wait()
    except RunError as error:
        said = str(error)
    module.write_groups = real
    wrong = [] if said and (rank != 0 or "model-of-2" in said) else [f"failing: {rank} was told {said!r}"]
    saver.save(3, tensors, {"step": 3}, "", b"{}")
    saver.wait()
    dist.barrier()
    names = sorted(p.name for p in (folder / "failing" / "checkpoints").iterdir())
    if names != ["latest", "step-00000001", "step-00000003"]:
        wrong.append(f"failing: left {names}")
    return wrong


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
