"""Run by torchrun: blocks that are run again, compiled, and then sharded by FSDP2, against plain ones on one process."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.compiling import apply_blocks
from slm.train.recompute import recompute


def model() -> Decoder:
    """All that blocks hand on or share: the first layer's values, the embeddings, a stored block run twice."""
    attention = {"name": "gqa", "heads": 4, "kv_heads": 2, "value_mix": "first"}
    residual, layout = {"name": "pre", "lambdas": True}, {"name": "repeat"}
    config = Model(dim=32, layers=2, vocab=50, context=16, attention=attention, residual=residual, layout=layout)
    return Decoder(config).init_weights(0)


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(50, (2 * world, 16), generator=generator) for _ in range(2))
    mine = slice(2 * rank, 2 * rank + 2)
    whole = model()
    (whole.training_loss(tokens, targets).loss / len(tokens)).backward()
    errors = {}
    for name in ("none", "full", "ops"):
        parts, graphs = model(), list[object]()
        recompute.parse(name).apply(parts)
        apply_blocks(parts, lambda graph, inputs, graphs=graphs: graphs.append(graph) or graph.forward)
        for block in parts.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(parts, mesh=mesh)
        register_fsdp_forward_method(parts, "training_loss")
        (parts.training_loss(tokens[mine], targets[mine]).loss / 2).backward()  # FSDP averages over processes
        pairs = zip(parts.parameters(), whole.parameters(), strict=True)
        worst = max(float((p.grad.full_tensor() - q.grad).abs().max() / q.grad.abs().max()) for p, q in pairs)
        errors[name] = [worst, len(graphs)]
    if rank == 0:
        print(json.dumps(errors), file=sys.stdout, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
