"""muP and CompleteP: the table, what they do at the base shape, and the coordinate check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from slm.config.errors import ConfigError
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.model.parametrization import MuP
from slm.train.coord_check import CoordCheck, coord_check
from slm.train.optim import AdamW, Muon
from slm.train.state import named_parameters

from .variants import VARIANTS, model_of

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
    ratio = decoder.blocks[1].ffn.up.weight.detach().std() / plain.blocks[1].ffn.up.weight.detach().std()
    assert float(ratio) == pytest.approx(m**-0.5)
    torch.testing.assert_close(decoder.embedding.weight, plain.embedding.weight)


def test_multipliers() -> None:
    part = {"name": "mup", "base_dim": 16, "input_scale": 3.0, "output_scale": 5.0}
    decoder = Decoder(model(parametrization=part))
    assert decoder.embedding.scale == 3.0
    assert decoder.embedding.logit_scale == pytest.approx(5 / 4)


@pytest.mark.parametrize(
    ("part", "width"),
    [
        ({"name": "mha", "heads": 4, "head_dim": 8}, "head_dim"),
        ({"name": "differential", "heads": 4, "head_dim": 8}, "head_dim"),
        ({"name": "mla", "heads": 4, "nope_dim": 4, "rope_dim": 4}, "nope_dim"),
    ],
)
def test_scores_go_like_one_over_the_heads_width(part: dict, width: str) -> None:
    """1/d in place of 1/sqrt(d), equal at the base's head width of 8; without ``base_head_dim`` nothing changes."""

    def scale(scheme: dict, **changes: int) -> float:
        return float(Decoder(model(parametrization=scheme, attention=part | changes)).blocks[0].attention.scale)

    mup = {"name": "mup", "base_dim": 64}
    wider = {width: part[width] + 24}  # heads of 32
    assert scale(mup | {"base_head_dim": 8}) == scale(mup) == scale({"name": "standard"}) == pytest.approx(8**-0.5)
    assert scale(mup | {"base_head_dim": 8}, **wider) == pytest.approx(8**0.5 / 32)
    assert scale(mup, **wider) == pytest.approx(32**-0.5)


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
        if p.tensor_class == "head":
            assert group["weight_decay"] == 0.2
        if "eps" in group:
            assert group["eps"] == pytest.approx(1e-8 / 4), p.name


WIDE = {"name": "mup", "base_dim": 16}
DEEP = {"name": "completep", "base_dim": 16}
REFUSED = [
    *(({"parametrization": scheme, "init": name}, "embeddings with the width") for scheme in (WIDE, DEEP) for name in ("inv_sqrt_dim", "mitchell", "dclm")),
    *(({"parametrization": DEEP, "init": name}, "scale_residual=false") for name in ("normal", "fan_in")),
    ({"parametrization": WIDE, "embedding": {"name": "tied", "scale": "sqrt_dim"}}, "sqrt_dim grows with the width"),
    ({"parametrization": DEEP, "residual": {"name": "pre", "depth_scale": 1.4}}, "depth_scale=null"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), REFUSED)
def test_what_would_scale_twice_is_refused(changes: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        model(**changes)


def test_inits_that_fit() -> None:
    for name in ("normal", "fan_in", "olmo2"):
        model(**MUP, init=name)
    model(**COMPLETEP, init="olmo2")
    model(**COMPLETEP, residual={"name": "pre", "branch_scale": 0.5})


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


QUICK = ("gqa", "mla", "moe", "mtp", "canon")
OTHERS = [
    n for n in VARIANTS if n not in (*QUICK, "embedding scaled", "mup", "completep") and not n.startswith("init ")
]
"""The embedding that is scaled by the width is refused; the rest are what the test itself sets."""
CHECKED = [(n, optim) for n in QUICK for optim in ("adamw", "muon") if (n, optim) != ("canon", "muon")]
"""Canon's taps are AdamW's: at the rate that Muon's matrices need here they are thrown about, and the change is noise."""
CHECKED += [pytest.param(n, "adamw", marks=pytest.mark.slow) for n in OTHERS]  # type: ignore[misc]


@pytest.mark.parametrize(("name", "optim"), CHECKED)
def test_every_part_is_flat_under_mup(name: str, optim: str) -> None:
    """What the blocks write changes alike at width 32 and eight times that. Measured exponents: -0.16 to +0.14; 0.25 counts as flat."""
    found = narrow_and_wide(name, optim)
    assert found.verdicts["first block"] == found.verdicts["last block"] == "flat", found.exponents
    assert found.verdicts["logits"] != "growing", found.exponents


def narrow_and_wide(name: str, optim: str) -> CoordCheck:
    """The coordinate check of a variant under muP. Muon's rate is so high that its matrices, not AdamW's embeddings, decide."""
    changes: dict[str, Any] = {
        "init": {"name": "fan_in", "embedding": 0.1},
        "parametrization": {"name": "mup", "base_dim": 32},
    }
    if "embedding" not in VARIANTS[name]:
        changes["embedding"] = "untied"
    part = {"adamw": AdamW(lr=0.01, weight_decay=0.0), "muon": Muon(lr=0.2, weight_decay=0.0)}[optim]
    return coord_check(model_of(name, **changes), part, [32, 256], length=24)


@pytest.mark.parametrize(
    ("optim", "field", "power", "verdict"),
    [
        ("adamw", "lr", 0.0, "growing"),
        ("adamw", "lr", -0.5, "growing"),
        ("muon", "orthogonal_lr", 0.0, "growing"),
        ("muon", "orthogonal_lr", -1.0, "shrinking"),
    ],
)
def test_another_power_of_the_width_is_not_flat(
    optim: str, field: str, power: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1/m for AdamW and m^-1/2 for Muon are the powers that carry over, and the check can tell."""
    right = MuP.rates
    monkeypatch.setattr(
        MuP, "rates", lambda self, m, c, hidden: replace(right(self, m, c, hidden), **{field: self.width(m) ** power})
    )
    found = narrow_and_wide("gqa", optim)
    assert found.verdicts[found.deciding] == verdict, found.exponents
