"""Run by torchrun: gradients of models with shared weights, sharded by FSDP2 block by block, against unsharded ones."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from slm.model.config import Model
from slm.model.decoder import Decoder

LAYOUTS = {
    "repeat": {"name": "repeat"},
    "cycle": {"name": "uniform", "repeat": 2, "order": "cycle"},
    "shared_ffn": {"name": "shared_ffn"},
}


def model(layout: dict) -> Decoder:
    attention = {"name": "gqa", "heads": 4, "kv_heads": 2}
    return Decoder(Model(dim=32, layers=3, vocab=50, context=16, attention=attention, layout=layout)).init_weights(0)


def sharded(layout: dict, mesh) -> Decoder:
    """Each block a unit of its own; a feed-forward that several blocks share is one too."""
    decoder = model(layout)
    if layout["name"] == "shared_ffn":
        fully_shard(decoder.blocks[0].ffn, mesh=mesh)
    for block in decoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh)
    register_fsdp_forward_method(decoder, "training_loss")
    return decoder


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(50, (2 * world, 16), generator=generator) for _ in range(2))
    mine = slice(2 * rank, 2 * rank + 2)
    errors = {}
    for name, layout in LAYOUTS.items():
        whole, parts = model(layout), sharded(layout, mesh)
        (whole.training_loss(tokens, targets).loss / len(tokens)).backward()
        (parts.training_loss(tokens[mine], targets[mine]).loss / 2).backward()  # FSDP averages over processes
        pairs = zip(parts.parameters(), whole.parameters(), strict=True)
        errors[name] = max(float((p.grad.full_tensor() - q.grad).abs().max() / q.grad.abs().max()) for p, q in pairs)
    if rank == 0:
        print(json.dumps(errors), file=sys.stdout, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
