"""Costs against what is built and what runs, over a sample of the whole product of parts; and what is refused."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from slm.config.errors import ConfigError
from slm.cost.cost import mean_keys
from slm.model.config import Model
from slm.model.decoder import Decoder

from .strategies import models
from .variants import BASE, VARIANTS, decoder_of, ids, model_of

T = 12


def sample(examples: int) -> settings:
    """The same examples at every run."""
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def counted(decoder: Decoder, tokens: torch.Tensor) -> int:
    """FLOPs of a forward pass, with an attention all of whose products are visible to the counter."""
    decoder.attention_backend = "matmul"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder.logits(decoder(tokens))
    return counter.get_total_flops()


def sizes(decoder: Decoder) -> dict[str, int]:
    """Parameters as stored, and with each block counted at each place where it runs."""
    stored = sum(p.numel() for p in decoder.parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in decoder.blocks]
    kept = sum(p.numel() for p in decoder.blocks.parameters())
    return {"unique": stored, "total": stored - kept + sum(blocks[place.block] for place in decoder.config.contexts)}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_flops_of_every_variant(name: str) -> None:
    cost, decoder = model_of(name).costs(), decoder_of(name)
    assert sizes(decoder).items() <= cost.params.items()
    assert counted(decoder, ids(3, T)) == pytest.approx(3 * T * cost.total.forward_flops(T), rel=1e-3)


def _made(data: dict[str, Any]) -> Model | None:
    """The model, or None where validation refuses it; anything but a `ConfigError` is a bug."""
    try:
        return Model(**data)
    except ConfigError:
        return None


@pytest.mark.parametrize("name", [n for n in VARIANTS if n.startswith("mtp")])
def test_what_only_training_pays(name: str) -> None:
    """Training's forward pass less plain scoring is the further predictions. They are counted causally, and run as a square."""
    cost, decoder, depths = model_of(name, context=T).costs(), decoder_of(name), model_of(name).aux.depths
    scored = counted(decoder, ids(3, T))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder.training_loss(ids(3, T), ids(3, T))
    above = depths * 4 * 32 * (T - mean_keys(T, None))
    assert counter.get_total_flops() - scored == pytest.approx(
        3 * T * (cost.total.train_only_flops(T) + above), rel=1e-3
    )


@sample(300)
@given(models())
def test_any_combination_is_refused_with_a_reason_or_costs_what_it_says(data: dict[str, Any]) -> None:
    model = _made(data)
    if model is None:
        return
    cost, decoder = model.costs(), Decoder(model).init_weights(0)
    assert sizes(decoder).items() <= cost.params.items()
    tokens = torch.randint(30, (2, T), generator=torch.Generator().manual_seed(0))
    assert counted(decoder, tokens) == pytest.approx(2 * T * cost.total.forward_flops(T), rel=1e-3)
    cache = decoder.to(torch.bfloat16).new_cache(1, T)
    assert sum(t.numel() * t.element_size() for t in cache.tensors) == cost.kv_cache_bytes(T)


@sample(250)
@given(models(), st.integers(1, T - 1), st.integers(2, T))
def test_any_combination_trains_decodes_and_keeps_documents_apart(data: dict[str, Any], cut: int, length: int) -> None:
    """Also in rows that are shorter than a convolution or than the tokens that are predicted ahead."""
    model, cut = _made(data), min(cut, length - 1)
    if model is None:
        return
    decoder = Decoder(model).init_weights(0)
    tokens = torch.randint(30, (2, length), generator=torch.Generator().manual_seed(0))
    docs = torch.tensor([[0] * cut + [1] * (length - cut)]).expand(2, -1)
    positions = torch.tensor([[*range(cut), *range(length - cut)]]).expand(2, -1)
    decoder.training_loss(tokens, tokens.roll(-1, 1), positions_BT=positions, docs_BT=docs).loss.backward()
    for name, p in decoder.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    decoder.eval()
    with torch.no_grad():
        packed, cache = decoder(tokens, positions_BT=positions, docs_BT=docs), decoder.new_cache(2, length)
        torch.testing.assert_close(packed[:, cut:], decoder(tokens[:, cut:]), atol=2e-5, rtol=1e-4)
        steps = [decoder(tokens[:, :cut], cache=cache)]
        steps += [decoder(tokens[:, i : i + 1], cache=cache) for i in range(cut, length)]
        torch.testing.assert_close(torch.cat(steps, 1), decoder(tokens), atol=2e-5, rtol=1e-4)


GQA = {"name": "gqa", "heads": 4, "kv_heads": 2}
PATTERN = {"name": "pattern"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"attention": GQA | {"heads": 5}}, "doesn't divide model.dim"),
    ({"attention": GQA | {"kv_heads": 3}}, "doesn't divide heads"),
    ({"attention": GQA | {"kv_heads": 8}}, "more than heads"),
    ({"attention": GQA | {"head_dim": 7}}, "an even part of each head"),
    ({"position": {"name": "rope", "fraction": 0.4}}, "an even part of each head"),
    ({"position": {"name": "rope", "fraction": 0.1}}, "is 0"),
    ({"position": {"name": "rope", "scaling": {"name": "longrope", "short": [1.0], "long": [1.0], "original": 8}}}, "has 1 factors, but 4"),
    ({"position": {"name": "rope", "base": 1.0}}, "greater than 1"),
    ({"position": {"name": "rope", "fraction": 0.25, "scaling": {"name": "dynamic", "factor": 2.0, "original": 8}}}, "single rotated pair"),
    ({"position": {"name": "rope", "scaling": {"name": "llama3", "factor": 2.0, "low": 4.0}}}, "must be below high"),
    ({"position": {"name": "rope", "scaling": {"name": "llama3", "factor": 2.0, "low": 0.0}}}, "greater than 0"),
    ({"position": {"name": "rope", "scaling": {"name": "longrope", "short": [0.0] * 4, "long": [1.0] * 4, "original": 8}}}, "greater than 0"),
    ({"attention": GQA | {"qk_norm": "full", "qk_norm_after_position": True}}, "can't come after"),
    ({"attention": {"name": "differential", "heads": 1}}, "must both be even"),
    ({"attention": {"name": "mla", "rope_dim": 3}}, "must be even"),
    ({"attention": "rglru"}, "no layer has an attention that uses positions"),
    ({"attention": {"name": "rglru", "heads": 5}, "position": "none"}, "doesn't divide width"),
    ({"ffn": {"name": "moe", "experts": 2, "top_k": 3}}, "top_k=3 is more than experts=2"),
    ({"ffn": {"name": "gated", "activation": "sillu"}}, "Did you mean 'silu'"),
    ({"conv": "canon", "attention": "mla"}, "has no point B"),
    ({"conv": "canon", "attention": {"name": "differential", "heads": 4}}, "has no point B"),
    ({"conv": "canon", "attention": "rglru", "position": "none"}, "has no point B"),
    ({"conv": "canon", "ffn": "moe"}, "has no point D"),
    ({"layout": PATTERN | {"pattern": "full,wide", "kinds": {"wide": {"ffn": {"hidden": 20}}}, "share_ffn": True}}, "share_ffn needs equal"),
    ({"layout": "scaling", "attention": "mla"}, "scales heads and key/value heads"),
    ({"layout": "scaling", "attention": "rglru", "position": "none"}, "scales heads and key/value heads"),
    ({"layout": PATTERN | {"pattern": "full,ful"}}, "Did you mean 'full'"),
    ({"layout": PATTERN | {"pattern": "full**2"}}, "can't read"),
    ({"layout": PATTERN | {"pattern": "full", "kinds": {"near": {}}}}, "doesn't use"),
    ({"layout": PATTERN | {"pattern": "near", "kinds": {"near": {"atention": {}}}}}, "Did you mean 'attention'"),
    ({"layout": PATTERN | {"pattern": "near", "kinds": {"near": {"attention": {"windo": 3}}}}}, "Did you mean 'window'"),
    ({"position": "learned", "layout": PATTERN | {"pattern": "full,nope"}}, "can't change it by layer"),
    ({"position": "learned", "layout": PATTERN | {"pattern": "near", "kinds": {"near": {"position": {"offset": 2}}}}}, "can't change it by layer"),
    ({"layout": PATTERN | {"pattern": "full,far", "kinds": {"far": {"position": "learned"}}}}, "can't change it by layer"),
    ({"layout": PATTERN | {"pattern": "near", "kinds": {"near": {"attention": None}}}}, "kinds.near: attention: expected a part's name"),
    ({"layout": PATTERN | {"pattern": "near", "kinds": {"near": {"attention": {"name": 5}}}}}, "kinds.near: attention: expected a part's name"),
    ({"position": "none", "layout": PATTERN | {"pattern": "far", "kinds": {"far": {"position": {"base": 1e6}}}}}, "kinds.far: Unknown key"),
    ({"layout": PATTERN | {"pattern": "full,mha"}, "attention": GQA | {"value_mix": "first"}}, "first layer's values"),
    ({"parametrization": "completep", "init": "normal"}, "scale_residual=false"),
    ({"parametrization": "mup", "init": "mitchell"}, "muP must not"),
    ({"dim": -1}, "greater than 0"),
    ({"embedding": {"name": "tied", "pad_to": 0}}, "greater than 0"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_makes_no_sense_is_refused_with_the_reason(changes: dict[str, Any], why: str) -> None:
    with pytest.raises((ConfigError, pydantic.ValidationError), match=why):
        Model(**BASE | changes)


def test_breakdown_adds_up() -> None:
    for name in ("gqa", "untied", "repeat", "mtp", "factorised"):
        params = model_of(name).costs().params
        assert params["embedding"] + params["head"] + params["non_embedding"] == params["unique"]
    assert model_of("gqa").costs().params["head"] == 0
    assert model_of("untied").costs().params["head"] == 40 * 32


def test_training_flops_conventions() -> None:
    cost = model_of("gqa").costs(64)
    flops = cost.flops_per_token
    assert flops["train"] == 3 * flops["forward"]
    assert flops["train_palm"] > flops["train"]
    near = model_of("window").costs(64).flops_per_token
    assert near["forward"] < flops["forward"]  # a window of 5 of 64
    assert near["train_palm"] == flops["train_palm"]
    more = model_of("mtp").costs(64).flops_per_token
    assert more["forward"] == model_of("embedding scaled").costs(64).flops_per_token["forward"]
    assert more["train"] > 3 * more["forward"]  # the further predictions are paid in training only


def test_mean_keys_by_counting() -> None:
    for context in (1, 7, 16):
        for window in (None, 1, 3, 7, 40):
            counted_keys = sum(min(t + 1, window or context) for t in range(context)) / context
            assert mean_keys(context, window) == pytest.approx(counted_keys)
