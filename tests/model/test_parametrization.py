"""muP and CompleteP: the table, what they do at the base shape, and the coordinate check."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.coord_check import coord_check
from slm.train.optim import AdamW, Muon
from slm.train.state import named_parameters

BASE: dict[str, Any] = {
    "dim": 64, "layers": 4, "vocab": 64, "context": 32, "attention": {"name": "mha", "heads": 4}, "ffn": {"name": "swiglu", "hidden": 128},
    "norm": "layernorm", "embedding": "untied", "init": {"name": "normal", "sigma": 0.1, "scale_residual": False},
}  # fmt: skip
MUP = {"parametrization": {"name": "mup", "base_dim": 16}}
COMPLETEP = {"parametrization": {"name": "completep", "base_dim": 16, "base_layers": 2}}


def model(**changes: Any) -> Model:
    return Model(**BASE | changes)


@pytest.mark.parametrize(("scheme", "m", "depth"), [(MUP, 4, 1), (COMPLETEP, 4, 2)])
def test_the_table(scheme: dict, m: int, depth: int) -> None:
    config = model(**scheme)
    for p in named_parameters(Decoder(config)):
        hidden_matrix = p.name.startswith("blocks.") and p.tensor_class == "matrix"
        rates = (p.factor("lr"), p.factor("orthogonal_lr"), p.factor("weight_decay"), p.factor("eps"))
        assert rates == ((1 / m, m**-0.5, m, 1 / (m * depth)) if hidden_matrix else (1, 1, 1, 1 / (m * depth))), p.name
    decoder, plain = Decoder(config).init_weights(0), Decoder(model()).init_weights(0)
    assert decoder.embedding.logit_scale == 1 / m
    assert decoder.blocks[0].scale == 1 / depth
    ratio = decoder.blocks[1].ffn.up.weight.std() / plain.blocks[1].ffn.up.weight.std()
    assert float(ratio) == pytest.approx(m**-0.5)
    torch.testing.assert_close(decoder.embedding.weight, plain.embedding.weight)


def test_multipliers_and_the_scores_scale() -> None:
    part = {"name": "mup", "base_dim": 16, "input_scale": 3.0, "output_scale": 5.0, "base_head_dim": 4}
    decoder = Decoder(model(parametrization=part))
    assert decoder.embedding.scale == 3.0
    assert decoder.embedding.logit_scale == pytest.approx(5 / 4)
    assert decoder.blocks[0].attention.scale == pytest.approx(
        4**0.5 / 16
    )  # 1/d instead of 1/sqrt(d), equal at the base


@pytest.mark.parametrize("optim", [AdamW(lr=0.01), Muon(lr=0.01)])
@pytest.mark.parametrize("name", ["mup", "completep"])
def test_at_the_base_shape_nothing_differs(name: str, optim: AdamW | Muon) -> None:
    part = {"name": name, "base_dim": 64} | ({"base_layers": 4} if name == "completep" else {})
    results = []
    tokens = torch.randint(64, (2, 33), generator=torch.Generator().manual_seed(0))
    for scheme in ({}, {"parametrization": part}):
        decoder = Decoder(model(**scheme)).init_weights(0)
        optimizers = optim.build(named_parameters(decoder))
        for _ in range(3):
            decoder.training_loss(tokens[:, :-1], tokens[:, 1:]).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        results.append([p.detach() for p in decoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("optim", "key"), [(AdamW(lr=0.1, weight_decay=0.2), "lr"), (Muon(lr=0.1, weight_decay=0.2), "orthogonal_lr")]
)
def test_optimisers_apply_the_factors(optim: AdamW | Muon, key: str) -> None:
    named = named_parameters(Decoder(model(**MUP)))
    groups = {id(p): g for o in optim.build(named) for g in o.param_groups for p in g["params"]}
    for p in named:
        group = groups[id(p.tensor)]
        own = key if p.tensor_class == "matrix" else "lr"
        assert group["peak_lr"] == pytest.approx(0.1 * p.factor(own)), p.name
        if p.tensor_class == "matrix":  # the product of rate and decay doesn't depend on the width
            assert group["peak_lr"] * group["weight_decay"] == pytest.approx(0.1 * 0.2)


WIDTHS = [32, 64, 128, 256]


@pytest.mark.parametrize("widths", [WIDTHS, pytest.param([32, 512], marks=pytest.mark.slow)])
def test_coordinate_check(widths: list[int]) -> None:
    """Four Adam steps at rate 0.01 change the activations alike from width 32 to 512 under muP, and ever more without."""
    shape = {"dim": 32, "attention": {"name": "mha", "heads": 2}, "ffn": {"name": "swiglu", "hidden": 96}, "norm": "rmsnorm", "layers": 3,
             "init": {"name": "fan_in", "embedding": 0.1}}  # fmt: skip
    optim = AdamW(lr=0.01, weight_decay=0.0)
    mup = coord_check(model(**shape, parametrization={"name": "mup", "base_dim": 32}), optim, widths, length=31)
    plain = coord_check(model(**shape), optim, widths, length=31)
    for place in ("first block", "last block", "logits"):
        changes = [mup.changes[w][place] for w in widths]
        assert max(changes) < 2 * min(changes), (place, changes)
        assert plain.changes[widths[-1]][place] > 2 * plain.changes[widths[0]][place], place
    assert mup.verdicts["first block"] == mup.verdicts["last block"] == "flat"
    assert mup.verdicts["logits"] != "growing"  # what the random head adds dies out with the width
    assert plain.verdicts["last block"] == plain.verdicts["logits"] == "growing"
    assert plain.changes[widths[-1]]["last block"] > 5 * plain.changes[widths[0]]["last block"]


def test_completep_is_flat_in_depth_where_mup_grows() -> None:
    """The change of the last stream over depths 2 to 16, at one width."""
    optim = AdamW(lr=0.01, weight_decay=0.0)

    def change(scheme: dict, layers: int) -> float:
        config = model(**scheme, layers=layers, dim=32, attention={"name": "mha", "heads": 2}, norm="rmsnorm", init={"name": "fan_in", "scale_residual": False, "embedding": 0.1})  # fmt: skip
        return coord_check(config, optim, [32, 64], length=31).changes[32]["last block"]

    mup = {"parametrization": {"name": "mup", "base_dim": 32}}
    completep = {"parametrization": {"name": "completep", "base_dim": 32, "base_layers": 2}}
    assert change(mup, 16) > 3 * change(mup, 2)
    ratio = change(completep, 16) / change(completep, 2)
    assert 0.5 < ratio < 2
