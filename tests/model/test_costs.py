"""Each part's cost against what is built and what runs, over the product of all parts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slm.config.registry import REGISTRIES
from slm.model.config import Model
from slm.model.decoder import Decoder

SLOTS = ("attention", "ffn", "norm", "position", "residual", "embedding")
PRODUCT = [("gqa", "swiglu", "rmsnorm", "rope", "pre", "tied", False)]


def model_of(choice: tuple, **changes) -> Model:
    *names, qk_norm = choice
    parts = dict(zip(SLOTS, names, strict=True)) | {"attention": {"name": names[0], "heads": 4, "qk_norm": qk_norm}}
    return Model(**({"dim": 32, "layers": 2, "vocab": 50, "context": 16} | parts | changes))


@pytest.mark.parametrize("choice", PRODUCT, ids=lambda c: "-".join(map(str, c)))
def test_parameters_and_flops_of_every_combination(choice: tuple) -> None:
    model = model_of(choice)
    cost = model.costs()
    with torch.device("meta"):
        decoder = Decoder(model)
        assert sum(p.numel() for p in decoder.parameters()) == cost.params["unique"]
        decoder.attention_backend = "matmul"  # all its products are visible to the counter
        tokens = torch.zeros(3, 16, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            decoder.logits(decoder(tokens))
    assert counter.get_total_flops() == 3 * 16 * cost.total.forward_flops(16)


def test_breakdown_adds_up() -> None:
    for embedding in ("tied", "untied"):
        params = Model(dim=32, layers=2, vocab=50, embedding=embedding).costs().params
        assert params["embedding"] + params["head"] + params["non_embedding"] == params["unique"]
        assert params["head"] == (1600 if embedding == "untied" else 0)


def test_cache_bytes_are_what_is_allocated() -> None:
    model = Model(dim=32, layers=3, vocab=50, context=16, attention={"name": "gqa", "heads": 4, "kv_heads": 2})
    cache = Decoder(model).new_cache(1, 16)
    assert sum(t.numel() for t in cache.tensors) * 2 == model.costs().kv_cache_bytes()


def test_training_flops_conventions() -> None:
    cost = Model(dim=32, layers=2, vocab=50, context=64).costs()
    assert cost.flops_per_token["train"] == 3 * cost.flops_per_token["forward"]
    assert cost.flops_per_token["train_palm"] > cost.flops_per_token["train"]
