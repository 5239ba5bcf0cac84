"""Shared weights are one tensor: stored once, counted once, with one gradient, also under FSDP2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.optim import AdamW
from slm.train.state import named_parameters

SMALL = {"dim": 32, "layers": 3, "vocab": 50, "context": 16, "attention": {"name": "gqa", "heads": 4, "kv_heads": 2}}


def decoder(layout: str | dict) -> Decoder:
    return Decoder(Model(**SMALL, layout=layout)).init_weights(0)


@pytest.mark.parametrize(("layout", "places"), [("repeat", 6), ("shared_ffn", 3), ({"name": "uniform", "repeat": 3, "order": "cycle"}, 9)])  # fmt: skip
def test_stored_once_and_counted_once(layout, places: int) -> None:
    model = decoder(layout)
    cost = model.config.costs()
    assert sum(p.numel() for p in model.parameters()) == cost.params["unique"]
    assert len(model.config.contexts) == places
    own = Model(**SMALL).costs().params
    if layout == "shared_ffn":
        ffn = Model(**SMALL).costs().parts["ffn"].params // 3
        assert own["unique"] - cost.params["unique"] == 2 * ffn
        assert cost.params["total"] == own["total"]
    else:
        assert cost.params["unique"] == own["unique"]
        assert cost.params["total"] == Model(**SMALL | {"layers": places}).costs().params["total"]
    held = [p for o in AdamW().build(named_parameters(model)) for g in o.param_groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))


@pytest.mark.parametrize("order", ["block", "cycle"])
def test_a_repeated_block_computes_what_its_copies_would(order: str) -> None:
    shared = decoder({"name": "repeat", "order": order})
    copies = Decoder(Model(**SMALL | {"layers": 6})).init_weights(1)
    state = shared.state_dict()
    with torch.no_grad():
        for name, p in copies.named_parameters():
            head, _, rest = name.partition("blocks.")
            i, _, leaf = rest.partition(".")
            p.copy_(state[f"blocks.{int(i) // 2 if order == 'block' else int(i) % 3}.{leaf}" if rest else head])
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shared(tokens), copies(tokens), rtol=0, atol=0)
    for model in (shared, copies):
        model.training_loss(tokens, tokens.roll(-1, 1)).loss.backward()
    both = [copies.get_parameter(f"blocks.{i}.ffn.up.weight").grad for i in ((0, 1) if order == "block" else (0, 3))]
    torch.testing.assert_close(shared.get_parameter("blocks.0.ffn.up.weight").grad, both[0] + both[1])


@pytest.mark.slow
def test_gradients_under_fsdp2_equal_unsharded_ones() -> None:
    worker = Path(__file__).with_name("fsdp_worker.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert set(errors) == {"repeat", "cycle", "shared_ffn"}
    assert max(errors.values()) < 1e-5, errors  # fp32: the order of sums differs
