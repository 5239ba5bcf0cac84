"""Presets against the transformers class of the same numbers, built without memory, and against published counts."""

from __future__ import annotations

import pytest
import torch

from slm.config.errors import ConfigError
from slm.export.targets import choose
from slm.model.decoder import Decoder
from slm.model.presets import list_presets, load_preset

from .survey_params import MILLIONS

KNOWN = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen3-0.6b": 596_049_920,
    "gpt2": 124_439_808,
    "pythia-160m": 162_322_944,
    "gemma-2-2b": 2_614_341_888,
    "llama-3.2-1b": 1_235_814_400,
    "bloom-560m": 559_214_592,
}
"""Exact counts that the makers publish."""
NO_CLASS = {
    "dclm-1b": "open_lm's gain-only LayerNorm with SwiGLU and full-width QK-norm",
    "minicpm-1b": "MiniCPM's own code: multipliers of MiniCPM3 on plain attention",
    "minicpm-2b": "as minicpm-1b",
    "mobilellm-ls-125m": "shared blocks",
    "mobilellm-ls-350m": "shared blocks",
    "mobillama-0.5b": "a shared feed-forward",
    "mobillama-0.8b": "a shared feed-forward",
    "mpt-1b-redpajama": "QK-norm, which the class for MPT ignores",
    "openelm-270m": "widths by layer",
    "openelm-450m": "widths by layer",
    "openelm-1.1b": "widths by layer",
    "openelm-3b": "widths by layer",
    "qwen-1.8b": "log-n scaling of Qwen's own code",
    "quickstart": None,
}
"""Presets that no class of transformers computes, and why; quickstart is slm's own."""


@pytest.mark.parametrize("name", list_presets())
def test_parameters_equal_transformers_and_the_published_ones(name: str) -> None:
    model = load_preset(name)
    params = model.costs().params
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(model).parameters()) == params["unique"]
    assert KNOWN.get(name, params["unique"]) == params["unique"]
    if name in MILLIONS:
        assert MILLIONS[name] in (round(params["unique"] / 1e6), round(params["total"] / 1e6))
    assert model.source


@pytest.mark.parametrize("name", [n for n in list_presets() if n not in NO_CLASS])
def test_parameters_equal_those_of_the_class(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = load_preset(name)
    target, reasons = choose(model)
    assert target is not None, reasons
    config = transformers.AutoConfig.for_model(target.family.model_type, **target.config)
    with torch.device("meta"):
        theirs = getattr(transformers, target.architecture)(config)
    theirs.tie_weights()
    unique = sum(p.numel() for p in {id(p): p for p in theirs.parameters()}.values())
    assert model.costs().params["unique"] == unique


@pytest.mark.parametrize("name", [n for n, why in NO_CLASS.items() if why])
def test_what_has_no_class_is_refused_by_the_exporter(name: str) -> None:
    assert choose(load_preset(name))[0] is None


def test_every_row_of_the_survey_has_a_preset_and_there_are_many() -> None:
    presets = set(list_presets())
    assert set(MILLIONS) <= presets
    assert len(presets) >= 90


def test_shared_blocks_are_counted_at_each_use_in_total_only() -> None:
    shared, plain = load_preset("mobilellm-ls-125m").costs().params, load_preset("mobilellm-125m").costs().params
    assert shared["unique"] == plain["unique"]
    assert shared["total"] - shared["embedding"] > 1.9 * (plain["unique"] - plain["embedding"])


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm-135m'"):
        load_preset("smollm-135")
