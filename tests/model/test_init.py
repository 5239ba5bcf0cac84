"""Measured standard deviations against the published ones, per tensor class and layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from slm.model.classes import classify
from slm.model.config import Model
from slm.model.decoder import Decoder

from .variants import VARIANTS, model_of

DIM, HIDDEN, LAYERS = 128, 384, 4
CUT = 0.9866
"""A normal distribution cut at three standard deviations has this share of its own; published figures are before the cut."""


def weights(init: str | dict, seed: int = 0, **changes) -> dict[str, torch.Tensor]:
    shape = {
        "dim": DIM,
        "layers": LAYERS,
        "vocab": 2048,
        "embedding": "untied",
        "ffn": {"name": "swiglu", "hidden": HIDDEN},
    }
    model = Decoder(Model(**shape | changes, init=init)).init_weights(seed)
    return {n: p.detach() for n, p in model.named_parameters()}


def depth(name: str) -> int:
    return int(name.split(".")[1]) + 1


def fan_in(name: str) -> int:
    return HIDDEN if name.endswith("down.weight") else DIM


SPECIFIED = {
    "normal": (
        {"name": "normal", "sigma": 0.03},
        lambda n, out: 0.03 / math.sqrt(2 * LAYERS) if out else 0.03,
    ),
    "normal without depth": ({"name": "normal", "scale_residual": False}, lambda n, out: 0.02),
    "normal with another one in blocks": (
        {"name": "normal", "sigma": 0.1, "hidden": 0.04, "scale_residual": False},
        lambda n, out: 0.1 if "embedding" in n else 0.04,
    ),
    "small": ({"name": "small"}, lambda n, out: 2 / LAYERS / math.sqrt(DIM) if out else math.sqrt(0.4 / DIM)),
    "small of TinyLlama": (
        {"name": "small", "residual": 1.0},
        lambda n, out: 1 / LAYERS / math.sqrt(DIM) if out else math.sqrt(0.4 / DIM),
    ),
    "openelm": (
        {"name": "openelm"},
        lambda n, out: (2 * LAYERS * DIM if out else DIM if "embedding" in n else fan_in(n)) ** -0.5,
    ),
    "fan_in": (
        {"name": "fan_in", "gain": 0.5, "embedding": 0.1},
        lambda n, out: 0.1 if "embedding" in n else 0.5 / math.sqrt(fan_in(n)) / (math.sqrt(2 * LAYERS) if out else 1),
    ),
    "inv_sqrt_dim": ({"name": "inv_sqrt_dim"}, lambda n, out: DIM**-0.5),
    "olmo2": ({"name": "olmo2"}, lambda n, out: CUT * 0.02),
    "mitchell": (
        {"name": "mitchell"},
        lambda n, out: CUT * ((2 * fan_in(n) * depth(n)) ** -0.5 if out else DIM**-0.5),
    ),
    "dclm": (
        {"name": "dclm"},
        lambda n, out: CUT * (DIM**-0.5 if "embedding" in n else (fan_in(n) * (2 * depth(n) if out else 1)) ** -0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIFIED)
def test_every_matrix_of_every_layer_has_its_std(name: str) -> None:
    """16,384 numbers or more each: the sampling error of a standard deviation is half a percent."""
    init, specified = SPECIFIED[name]
    matrices = {n: p for n, p in weights(init).items() if p.ndim == 2}
    assert len(matrices) == 2 + 7 * LAYERS
    for tensor, p in matrices.items():
        wanted = specified(tensor, tensor.endswith((".o.weight", ".down.weight")))
        assert float(p.std()) == pytest.approx(wanted, rel=0.03), tensor
        assert abs(float(p.mean())) < 0.05 * wanted


@pytest.mark.parametrize("name", ["olmo2", "mitchell", "dclm"])
def test_cut_at_three_standard_deviations(name: str) -> None:
    for tensor, p in weights({"name": name}).items():
        if p.ndim == 2:
            before = SPECIFIED[name][1](tensor, tensor.endswith((".o.weight", ".down.weight"))) / CUT
            assert 2.5 * before < p.abs().max() <= 3.0001 * before, tensor
    assert any(p.abs().max() > 3.5 * p.std() for p in weights({"name": name, "truncate": None}).values() if p.ndim == 2)


def test_stacks_and_blocks_start_like_matrices() -> None:
    moe = weights("normal", ffn={"name": "moe", "hidden": 64, "experts": 4})
    assert float(moe["blocks.0.ffn.gate"].std()) == pytest.approx(0.02, rel=0.03)
    assert float(moe["blocks.0.ffn.down"].std()) == pytest.approx(0.02 / math.sqrt(8), rel=0.03)
    gates = weights("fan_in", attention={"name": "rglru", "heads": 2}, position="none")
    assert float(gates["blocks.0.attention.input_gate.weight"].std()) == pytest.approx(64**-0.5, rel=0.03)


def test_gains_biases_taps_and_scalars_start_where_they_should() -> None:
    for variant, leaf, wanted in (
        ("layernorm", "norm.weight", 1.0), ("layernorm", "norm.bias", 0.0), ("rmsnorm one_plus", "norm.weight", 0.0), ("dyt", "norm.alpha", 0.5),
        ("attention biases", "blocks.0.attention.q.bias", 0.0), ("sinks", "blocks.1.attention.sinks", 0.0), ("value_mix first", "blocks.0.attention.values.mix", 0.5),
        ("series", "blocks.0.ffn.act.scales", 1 / 3),
    ):  # fmt: skip
        start = dict(Decoder(model_of(variant)).init_weights(0).named_parameters())[leaf].detach()
        torch.testing.assert_close(start, torch.full_like(start, wanted))
    parameters = dict(Decoder(model_of("lambdas")).init_weights(0).named_parameters())
    assert parameters["blocks.0.mix"].tolist() == [1.0, 0.0]
    conv = weights("normal", conv="canon")["blocks.0.attention.conv.weight"]
    assert float(conv.std()) == pytest.approx(12**-0.5, rel=0.05)  # torch's own for kernels of 4
    lambdas = weights("normal", attention={"name": "differential", "heads": 2})["blocks.0.attention.lambdas"]
    assert float(lambdas.std()) == pytest.approx(0.1, rel=0.15)
    decay = weights("normal", attention="rglru", position="none")["blocks.0.attention.decay"].double()
    a = torch.exp(-8 * torch.nn.functional.softplus(decay))  # at an open gate
    assert float(a.min()) == pytest.approx(0.9, abs=1e-3)
    assert float(a.max()) == pytest.approx(0.999, abs=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_same_seed_same_weights_and_another_seed_others(name: str) -> None:
    a, b, c = (dict(Decoder(model_of(name)).init_weights(s).named_parameters()) for s in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["embedding.weight"], c["embedding.weight"])


def test_a_parameter_of_no_class_or_without_a_start_is_an_error() -> None:
    class Stray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = Decoder(Model(dim=32, layers=1, vocab=40))
    model.blocks[0].extra = Stray()
    with pytest.raises(ValueError, match=r"blocks\.0\.extra\.scale"):
        model.init_weights(0)
    with pytest.raises(ValueError, match="Stray"):
        list(classify(model))
    model.blocks[0].extra.param_classes = {"scale": "scalar"}
    with pytest.raises(ValueError, match="give the module starts"):
        model.init_weights(0)


def test_depth_counts_blocks_that_run_and_layers_as_they_are_stored() -> None:
    """A block that runs twice writes twice as often; OLMo's and open_lm's rules know a block by its place in the stack."""
    twice = weights("normal", layout="repeat")
    assert float(twice["blocks.3.ffn.down.weight"].std()) == pytest.approx(0.02 / math.sqrt(4 * LAYERS), rel=0.03)
    ahead = weights("mitchell", layout="repeat", aux="mtp")
    wanted = (2 * DIM * (LAYERS + 1)) ** -0.5  # the block for the next token but one comes behind the others
    assert float(ahead["further.0.block.attention.o.weight"].std()) == pytest.approx(CUT * wanted, rel=0.03)
    assert float(ahead["blocks.3.attention.o.weight"].std()) == pytest.approx(CUT * (8 * DIM) ** -0.5, rel=0.03)
