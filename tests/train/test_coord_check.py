"""The coordinate check as a user meets it, and the shapes it compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import slm

from slm.cli.coord_check import coord_check as command
from slm.config.errors import ConfigError, RunError
from slm.model.config import Model
from slm.model.presets import load_preset
from slm.train.coord_check import CoordCheck, coord_check, widened
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


def test_what_a_layouts_kinds_set_is_widened_too() -> None:
    wide = widened(load_preset("recurrentgemma-2b"), 5120)
    first = wide.contexts[0].attention  # three quarters of its mixers are of a kind of its own
    assert (first.width, first.heads) == (5120, 20)  # type: ignore[attr-defined]
    kinds = {"thin": {"ffn": {"name": "relu2", "hidden": 48}, "attention": "mha"}}
    model = Model(dim=32, layers=2, vocab=50, context=32, attention={"name": "gqa", "heads": 2, "kv_heads": 1}, layout={"name": "pattern", "pattern": "full,thin", "kinds": kinds})  # fmt: skip
    assert widened(model, 64).contexts[1].ffn.hidden == 96
    assert widened(model, 32) == model
    kinds = {"thin": {"attention": {"heads": 1, "kv_heads": 1}}}
    with pytest.raises(ConfigError, match=r"model\.layout\.kinds\.thin\.attention\.heads=1 would become 1\.5"):
        widened(model.with_(layout=model.layout.with_(kinds=kinds)), 48)


def test_an_overflow_is_no_verdict() -> None:
    model = Model(dim=32, layers=1, vocab=50, context=32, attention={"name": "mha", "heads": 2})
    with pytest.raises(RunError, match=r"At width 32 the activations are not finite.*Lower train\.optim\.lr"):
        coord_check(model, AdamW(lr=1e38), [32, 64], length=8)


@pytest.mark.parametrize(
    ("first", "last", "logits", "place", "verdict"),
    [
        (0.0, 0.1, -0.4, "last block", "flat"),
        (0.5, 0.4, 1.0, "logits", "growing"),
        (-0.5, -0.5, -0.9, "last block", "shrinking"),
    ],
)
def test_the_verdict_is_about_the_place_that_decides(
    first: float, last: float, logits: float, place: str, verdict: str
) -> None:
    found = CoordCheck({}, {"embedding": 0.0, "first block": first, "last block": last, "logits": logits})
    assert (found.deciding, found.verdicts[found.deciding]) == (place, verdict)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart, overrides = tmp_path / "changes.svg", ["train=adamw"]
    options = ["--widths", "32,128", "--steps", "2", "--lr", "0.01", "--out", str(chart)]
    text = slm("model", "coord-check", "toy", *overrides, *options).stdout
    assert "last block" in text
    assert text.splitlines()[-1].startswith("growing: ")
    assert "log2 of the width" in chart.read_text()
    overrides += ["model/parametrization=mup", "model.parametrization.base_dim=32"]
    command(
        "toy", overrides, widths="32,128", steps=2, lr=0.01, json=True
    )  # in this process: another takes seconds to start
    found = json.loads(capsys.readouterr().out)
    assert set(found["changes"]) == {"32", "128"}
    assert found["verdicts"]["last block"] == found["verdict"] == "flat"
    with pytest.raises(ConfigError, match="whole numbers"):
        command("toy", widths="a,b")


def test_a_preset_needs_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    command("opt-125m", ["model.layers=2"], widths="64,128", steps=1, json=True)
    assert set(json.loads(capsys.readouterr().out)["changes"]) == {"64", "128"}
    with pytest.raises(ConfigError, match="no recipe 'opt-126m'"):
        command("opt-126m")
