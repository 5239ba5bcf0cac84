"""Decoding with a cache equals reading at once, and the cache is as big as the cost says."""

from __future__ import annotations

import pytest
import torch

from slm.config.errors import ConfigError

from .variants import FUSED, VARIANTS, decoder_of, ids, model_of

CASES = [(name, "matmul") for name in VARIANTS] + [(name, "sdpa") for name in FUSED]


@pytest.mark.parametrize(("name", "backend"), CASES)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(name: str, backend: str) -> None:
    model, tokens = decoder_of(name, backend), ids()
    full = model.logits(model(tokens))
    cache = model.new_cache(2, 24)
    pieces = [model(tokens[:, :7], cache=cache), model(tokens[:, 7:10], cache=cache)]
    pieces += [model(tokens[:, i : i + 1], cache=cache) for i in range(10, 24)]
    torch.testing.assert_close(model.logits(torch.cat(pieces, 1)), full, atol=1e-5, rtol=1e-5)
    with pytest.raises((ValueError, ConfigError), match=r"holds 24|end at 24"):
        model(tokens[:, :1], cache=cache)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("context", [3, 24])
def test_the_cost_says_how_big_the_cache_is_to_the_byte(name: str, context: int) -> None:
    model = model_of(name)
    decoder = decoder_of(name).to(torch.bfloat16)
    cache = decoder.new_cache(1, context)
    assert sum(t.numel() * t.element_size() for t in cache.tensors) == model.costs().kv_cache_bytes(context)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mha", 2 * 24 * 2 * 4 * 8),
        ("gqa", 2 * 24 * 2 * 2 * 8),
        ("mqa", 2 * 24 * 2 * 1 * 8),
        ("mla", 2 * 24 * (8 + 4)),
        ("window", 2 * 5 * 2 * 2 * 8),
        ("repeat", 4 * 24 * 2 * 2 * 8),
        ("rglru", 2 * (3 * 32 + 2 * 32)),
    ],
)
def test_cache_sizes_by_hand(name: str, values: int) -> None:
    """layers x tokens x numbers per token (or a state, whose fp32 part counts twice), at two bytes each."""
    assert model_of(name).costs().kv_cache_bytes(24) == 2 * values
