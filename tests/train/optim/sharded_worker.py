"""One of two processes that hold halves of every tensor: ``python sharded_worker.py RANK FILE RESULT``.

Writes, for each optimiser and way of sharding, how far the result is from that of the whole tensors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from train.optim.cases import PARTS, parameters, state_of, step, tensors

from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.optim import Adafactor, AdamW, Muon, NamedParameter, OptimPart
from slm.train.optim.steps import init_state
from slm.train.state import named_parameters

Place = Callable[[torch.Tensor], list[Placement]]
STEPS = 5


def sharded(named: list[NamedParameter], mesh: DeviceMesh, place: Place) -> list[NamedParameter]:
    return [
        NamedParameter(
            p.name, p.tensor_class, torch.nn.Parameter(distribute_tensor(p.tensor.detach(), mesh, place(p.tensor)))
        )
        for p in named
    ]


def whole(t: torch.Tensor) -> torch.Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def distance(part: OptimPart, mesh: DeviceMesh, place: Place) -> dict[str, float]:
    """Largest difference of weights and of state, relative to the largest of each tensor, after steps of which one is called off."""
    plain = parameters()
    halves = sharded(plain, mesh, place)
    a, b = part.build(plain), part.build(halves)
    init_state(b)  # makes state in the order of the groups, as a restored run has it
    init_state(a)
    for seed in range(STEPS):
        grads = tensors(seed)
        split = {p.name: distribute_tensor(grads[p.name], mesh, place(grads[p.name])) for p in halves}
        if seed == 2:
            grads = {n: torch.full_like(g, float("nan")) for n, g in grads.items()}
            split = {n: torch.full_like(g, float("nan")) for n, g in split.items()}
        step(a, plain, grads, bad=float(seed == 2))
        step(b, halves, split, bad=float(seed == 2))
    weights = max(relative(whole(q.tensor.detach()), p.tensor.detach()) for p, q in zip(plain, halves, strict=True))
    states = [
        relative(whole(mine[key]), right[key])
        for right, mine in zip(state_of(a), state_of(b), strict=True)
        for key in right
        if not key.startswith("basis")  # of equal eigenvalues, any basis is as good
    ]
    return {"weights": weights, "state": max(states)}


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right.double()).abs().max() / right.double().abs().max().clamp(min=1e-30))


def decoder_distance(part: OptimPart, mesh: DeviceMesh) -> float:
    """The same with FSDP2's own slices and gradients: two halves of a batch against the whole of it."""
    config = Model(dim=36, layers=3, vocab=41, attention={"name": "gqa", "heads": 3, "kv_heads": 1}, norm="layernorm")
    single, split = Decoder(config).init_weights(0), Decoder(config).init_weights(0)
    for block in split.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(split, mesh=mesh)
    register_fsdp_forward_method(split, "training_loss")  # weights are gathered around it, as around ``forward``
    a, b = part.build(named_parameters(single)), part.build(named_parameters(split))
    rank = dist.get_rank()
    for seed in range(4):
        tokens = torch.randint(41, (4, 25), generator=torch.Generator().manual_seed(seed))
        for model, optimizers, rows in ((single, a, tokens), (split, b, tokens[2 * rank : 2 * rank + 2])):
            sums = model.training_loss(rows[:, :-1], rows[:, 1:])
            (sums.loss / sums.count).backward()
            for optimizer in optimizers:
                optimizer.found_inf, optimizer.grad_scale = torch.tensor(0.0), None  # type: ignore[attr-defined]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return max(
        relative(whole(q.detach()), p.detach()) for p, q in zip(single.parameters(), split.parameters(), strict=True)
    )


def main(rank: int, file: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    line, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2), mesh_dim_names=("replica", "shard"))
    found: dict[str, dict[str, object]] = {"rows": {}, "hsdp": {}, "columns": {}, "decoder": {}}
    for name, part in PARTS.items():
        found["rows"][name] = distance(part, line, lambda t: [Shard(0)])
    for name in ("muon", "soap", "adafactor"):
        found["hsdp"][name] = distance(PARTS[name], grid, lambda t: [Replicate(), Shard(0)])
    for name in ("adamw", "muon", "soap", "lion"):
        found["columns"][name] = distance(PARTS[name], line, lambda t: [Shard(t.ndim - 1)])
    for part in (AdamW(lr=0.01), Muon(), Adafactor(lr=0.01)):
        found["decoder"][part.part_name] = decoder_distance(part, line)
    if rank == 0:
        Path(result).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
