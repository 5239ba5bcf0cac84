"""The coordinate check as a user meets it, and the shapes it compares."""

from __future__ import annotations

import json

import pytest
from support import slm

from slm.config.errors import ConfigError
from slm.model.config import Model
from slm.model.presets import load_preset
from slm.train.coord_check import coord_check, widened
from slm.train.optim import AdamW


@pytest.mark.parametrize(
    "name", ["smollm2-135m", "minicpm3-4b", "recurrentgemma-2b", "opt-350m", "gemma-3-1b", "openelm-270m"]
)
def test_a_widened_preset_keeps_its_heads_width_and_its_proportions(name: str) -> None:
    model = load_preset(name)
    wide = widened(model, 2 * model.dim)
    assert wide.dim == 2 * model.dim
    assert wide.attention.rotary_dim == model.attention.rotary_dim
    ratio = wide.costs().parts["ffn"].params / model.costs().parts["ffn"].params
    assert ratio == pytest.approx(4, rel=0.05)  # OpenELM's rounding of widths


def test_same_width_same_model() -> None:
    model = Model(dim=96, layers=2, vocab=50, context=32, attention={"name": "gqa", "heads": 3, "kv_heads": 1})
    assert widened(model, 96) == model


def test_widths_that_do_not_work_are_explained() -> None:
    model = Model(dim=96, layers=2, vocab=50, context=32, attention={"name": "gqa", "heads": 3, "kv_heads": 1})
    with pytest.raises(ConfigError, match=r"heads=3 would become 1\.56\. Choose widths that are multiples of 32"):
        coord_check(model, AdamW(), [50, 96])
    with pytest.raises(ConfigError, match="at least two widths"):
        coord_check(model, AdamW(), [96, 96])


def test_the_command() -> None:
    arguments = [
        "model",
        "coord-check",
        "toy",
        "train=adamw",
        "train.batch_tokens=2048",
        "--widths",
        "32,64,128",
        "--steps",
        "2",
    ]
    text = slm(*arguments).stdout
    assert "exponent" in text
    assert "last block" in text
    found = json.loads(
        slm(*arguments, "--json", "model/parametrization=mup", "model.parametrization.base_dim=32").stdout
    )
    assert set(found["changes"]) == {"32", "64", "128"}
    assert found["verdicts"]["last block"] in ("flat", "growing", "shrinking")
    assert "whole numbers" in slm("model", "coord-check", "toy", "--widths", "a,b", code=2).stderr
