"""Presets against the transformers class of the same numbers, built without memory, and against published counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from support import slm

from slm.config.errors import ConfigError
from slm.export.targets import choose
from slm.model.decoder import Decoder
from slm.model.presets import MISSING, list_presets, load_preset

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
    "phi-4-mini": 3_836_021_760,
}
"""Exact counts that the makers publish."""
RECALLED = {
    "qwen1.5-0.5b": 463_987_712,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "gpt2-medium": 354_823_168,
    "gpt2-xl": 1_557_611_200,
    "pythia-70m": 70_426_624,
    "pythia-1b": 1_011_781_632,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "recurrentgemma-2b": 2_682_862_080,
    "llama-3.2-3b": 3_212_749_824,
    "opt-125m": 125_239_296,
    "phi-1": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini-4k": 3_821_079_552,
    "stablelm-2-1.6b": 1_644_515_328,
    "olmo-2-1b": 1_484_916_736,
    "openelm-270m": 271_527_168,
    "openelm-3b": 3_036_647_424,
    "minicpm-2b": 2_724_880_896,
}
"""Exact counts of further released weights: background knowledge, written down before it was compared."""
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
    assert (KNOWN | RECALLED).get(name, params["unique"]) == params["unique"]
    if name in MILLIONS:
        assert MILLIONS[name] in (round(params["unique"] / 1e6), round(params["total"] / 1e6))
    assert re.search(r"\b(19|20)\d\d\b", model.source) or name == "quickstart"  # who and when


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


def test_the_list_names_every_preset_and_what_is_missing() -> None:
    listed = json.loads(slm("model", "list", "--json").stdout)
    assert [m["name"] for m in listed["models"]] == list_presets()
    assert [m["name"] for m in listed["missing"]] == list(MISSING)
    assert not set(MISSING) & set(list_presets())
    text = slm("model", "list").stdout
    assert re.search(
        r"openelm-270m +272 M +16 +1280 +gqa, swiglu, rmsnorm, rope, pre, tied, scaling +arXiv 2404\.14619", text
    )
    assert re.search(r"gpt2 .* Radford et al\. 2019 *\n", text)
    assert all(f"No preset for {name}: " in text for name in MISSING)


def test_a_preset_that_is_no_yaml_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_text("dim: 64: 3")
    monkeypatch.setenv("SLM_RECIPES", str(tmp_path))
    with pytest.raises(ConfigError, match=r"broken\.yaml is no valid YAML"):
        load_preset("broken")


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm-135m'"):
        load_preset("smollm-135")
