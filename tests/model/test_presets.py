"""Presets against the transformers class of the same numbers, built without memory."""

from __future__ import annotations

import pytest
import torch

from slm.config.errors import ConfigError
from slm.export.targets import choose
from slm.model.presets import list_presets, load_preset

transformers = pytest.importorskip("transformers")
KNOWN = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen3-0.6b": 596_049_920,
}


@pytest.mark.parametrize("name", list_presets())
def test_parameters_equal_transformers(name: str) -> None:
    model = load_preset(name)
    target, _ = choose(model)
    assert target is not None
    config = getattr(transformers, target.architecture.replace("ForCausalLM", "Config"))(**target.config(model))
    with torch.device("meta"):
        theirs = getattr(transformers, target.architecture)(config)
    theirs.tie_weights()
    unique = sum(p.numel() for p in {id(p): p for p in theirs.parameters()}.values())
    assert model.costs().params["unique"] == unique
    assert KNOWN.get(name, unique) == unique
    assert model.source


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm2-135m'"):
        load_preset("smollm-135m")
