"""Who gets what: groups, rules, rates, state."""

from __future__ import annotations

import pytest
import torch
from train.optim.cases import PARTS, SHAPES, decoder_parameters, parameters, state_of, step, tensors

from slm.config.errors import ConfigError
from slm.config.yaml import dump_yaml
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.optim import SOAP, AdamMini, AdamW, Lion, Muon, NamedParameter, OptimPart, Rule, optim, set_rate
from slm.train.optim.steps import init_state
from slm.train.state import named_parameters

each_part = pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))


def groups_by_name(part: OptimPart, named: list[NamedParameter]) -> dict[str, dict]:
    names = {id(p.tensor): p.name for p in named}
    return {names[id(p)]: g for o in part.build(named) for g in o.param_groups for p in g["params"]}


@each_part
def test_every_parameter_once_and_only_matrices_and_head_decay(part: OptimPart) -> None:
    named = decoder_parameters()
    groups = [g for o in part.build(named) for g in o.param_groups]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p.tensor) for p in named)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p.tensor) for p in named if p.tensor_class in ("matrix", "head")}


def test_every_registered_optimiser_is_among_the_cases() -> None:
    assert {part.part_name for part in PARTS.values()} == set(optim.parts)


@each_part
def test_an_unknown_class_is_an_error(part: OptimPart) -> None:
    stray = NamedParameter("x", "gate", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(KeyError):
        part.build([stray])


@each_part
def test_set_rate_scales_every_peak_and_nothing_else_moves_it(part: OptimPart) -> None:
    named = parameters()
    optimizers = part.build(named)
    set_rate(optimizers, 0.5)
    assert {(g["lr"], g["peak_lr"] / 2) for o in optimizers for g in o.param_groups} == {
        (g["lr"], g["lr"]) for o in optimizers for g in o.param_groups
    }
    before = [p.tensor.detach().clone() for p in named]
    set_rate(optimizers, 0.0)
    for seed in range(3):
        step(optimizers, named, tensors(seed))
    assert all(torch.equal(p.tensor, b) for p, b in zip(named, before, strict=True))


@each_part
def test_every_optimiser_lowers_a_quadratic(part: OptimPart) -> None:
    """All tensors are pulled to a target; a good part of the distance is gone after forty steps."""
    named, target = parameters(), tensors(7)
    optimizers = part.with_(lr=0.05, weight_decay=0.0).build(named)

    def distance() -> float:
        return sum(float((p.tensor.detach() - target[p.name]).square().sum()) for p in named)

    first = distance()
    for _ in range(40):
        step(optimizers, named, {p.name: p.tensor.detach() - target[p.name] for p in named})
    assert distance() < 0.6 * first


@each_part
def test_state_numbers_are_those_that_there_are(part: OptimPart) -> None:
    named = parameters()
    optimizers = part.build(named)
    for seed in range(2):
        step(optimizers, named, tensors(seed))
    counted = sum(t.numel() for s in state_of(optimizers) for t in s.values())
    assert part.state_numbers(named) == counted
    assert all(not s for o in part.build(named) for s in o.state.values())


def test_state_numbers_of_a_model_that_is_not_there() -> None:
    with torch.device("meta"):
        named = named_parameters(
            Decoder(Model(dim=576, layers=30, vocab=49152, attention={"name": "gqa", "heads": 9, "kv_heads": 3}))
        )
    weights = sum(p.tensor.numel() for p in named)
    assert AdamW().state_numbers(named) / weights == pytest.approx(2, abs=1e-3)
    assert AdamMini().state_numbers(named) / weights == pytest.approx(1, abs=2e-2)
    assert 1 < Muon().state_numbers(named) / weights < 2
    assert 5 < SOAP().state_numbers(named) / weights < 9


@each_part
def test_state_made_ahead_is_the_state_of_the_first_step(part: OptimPart) -> None:
    """So a checkpoint can be read into it; the steps after it are the same."""
    ahead, plain = parameters(), parameters()
    early, late = part.build(ahead), part.build(plain)
    init_state(early)
    init_state(early)
    for seed in range(4):
        step(early, ahead, tensors(seed))
        step(late, plain, tensors(seed))
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(ahead, plain, strict=True))
    assert [s.keys() for s in state_of(early)] == [s.keys() for s in state_of(late)]


@each_part
def test_a_parameter_without_a_gradient_stays(part: OptimPart) -> None:
    named = parameters()
    optimizers = part.build(named)
    step(optimizers, named, tensors(0))
    before = named[0].tensor.detach().clone()
    for p in named[1:]:
        p.tensor.grad = torch.ones_like(p.tensor)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(named[0].tensor, before)
    assert not torch.equal(named[1].tensor, parameters()[1].tensor)


# ---- rules ------------------------------------------------------------------------------------------------


def test_rules_apply_in_order_numbers_replace_and_factors_multiply() -> None:
    part = AdamW(
        lr=1e-3,
        weight_decay=0.1,
        rules=[
            {"match": "^(q|k)$", "lr": "x2"},
            {"match": "k", "lr": "x3", "weight_decay": 0},
            {"tensor_class": "matrix", "match": "up", "lr": 0.5},
            {"match": "up2", "lr": "x0.1"},
            {"tensor_class": "embedding", "weight_decay": 0.2},
        ],
    )
    groups = groups_by_name(part, parameters())
    assert groups["q"]["lr"] == pytest.approx(2e-3)
    assert (groups["k"]["lr"], groups["k"]["weight_decay"]) == pytest.approx((6e-3, 0))
    assert (groups["up"]["peak_lr"], groups["up2"]["peak_lr"]) == pytest.approx((0.5, 0.05))
    assert groups["embedding"]["weight_decay"] == 0.2
    assert groups["head"]["lr"] == 1e-3


def test_the_order_of_rules_matters() -> None:
    number, factor = {"match": "q", "lr": 0.5}, {"match": "q", "lr": "x2"}
    assert groups_by_name(AdamW(rules=[number, factor]), parameters())["q"]["lr"] == 1.0
    assert groups_by_name(AdamW(rules=[factor, number]), parameters())["q"]["lr"] == 0.5


def test_the_parametrisation_comes_after_the_rules() -> None:
    model = Model(dim=64, layers=2, vocab=50, embedding="untied", init="fan_in", parametrization={"name": "mup", "base_dim": 16})  # fmt: skip
    named = named_parameters(Decoder(model))
    for part, key in ((AdamW, "lr"), (Lion, "lr"), (AdamMini, "lr"), (Muon, "orthogonal_lr"), (SOAP, "orthogonal_lr")):
        groups = groups_by_name(part(lr=0.1, weight_decay=0.2, rules=[{"tensor_class": "matrix", "lr": 0.3}]), named)
        for p in named:
            if p.tensor_class == "matrix":
                assert groups[p.name]["peak_lr"] == pytest.approx(0.3 * p.factor(key))
                assert groups[p.name]["peak_lr"] * groups[p.name]["weight_decay"] == pytest.approx(0.3 * 0.2)


@pytest.mark.parametrize("part", [AdamW, Muon, SOAP, Lion])
def test_independent_decay_takes_the_same_share_at_every_rate(part: type[OptimPart]) -> None:
    model = Model(dim=64, layers=2, vocab=50, embedding="untied", init="fan_in", parametrization={"name": "mup", "base_dim": 16})  # fmt: skip
    for named in (parameters(), named_parameters(Decoder(model))):
        for lr in (1e-3, 0.02):
            groups = groups_by_name(part(lr=lr, weight_decay=1e-4, decay="independent"), named)
            shares = {p.tensor_class: groups[p.name]["peak_lr"] * groups[p.name]["weight_decay"] for p in named}
            assert shares["matrix"] == pytest.approx(1e-4)
            assert shares["head"] == pytest.approx(1e-4)
            assert shares["norm"] == 0


def test_elementwise_gives_matrices_to_adamw() -> None:
    part = Muon(rules=[{"match": "^q$", "elementwise": True, "lr": 0.5}])
    muon, adamw = part.build(named := parameters())
    assert named[0].tensor in {p for g in adamw.param_groups for p in g["params"]}
    assert named[0].tensor not in {p for g in muon.param_groups for p in g["params"]}
    assert groups_by_name(part, named)["q"]["lr"] == 0.5
    aspect = Muon(lr=0.02, rest_lr=0.003, rules=[{"match": "^q$", "elementwise": True}])
    assert [groups_by_name(aspect, named)[n]["lr"] for n in ("q", "k", "head")] == [0.003, 0.02, 0.003]
    mini = AdamMini(rules=[{"match": "^q$", "elementwise": True}]).build(named)
    init_state(mini)
    assert mini[0].state[named[0].tensor]["exp_avg_sq"].shape == (12, 8)
    assert mini[0].state[named[1].tensor]["exp_avg_sq"].shape == (4, 1)


@pytest.mark.parametrize(
    ("part", "rule"),
    [(AdamW, {"blocks": 2}), (Lion, {"elementwise": True}), (SOAP, {"blocks": 2}), (AdamMini, {"blocks": 3})],
)
def test_what_an_optimiser_has_no_use_for_is_refused(part: type[OptimPart], rule: dict) -> None:
    with pytest.raises(ConfigError, match=r"has no use for (blocks|elementwise)=.* at 'q'"):
        part(rules=[{"match": "^q$", **rule}]).build(parameters())


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"lr": 1.0}, "needs 'match'"),
        ({"match": "q"}, "changes nothing"),
        ({"match": "q[", "lr": 1.0}, "is no regular expression"),
        ({"tensor_class": "matrx", "lr": 1.0}, "Did you mean 'matrix'"),
        ({"match": "q", "lr": "twice"}, "'twice' is neither a number nor a factor"),
        ({"match": "q", "lr": -1}, "neither a number nor a factor"),
        ({"match": "q", "lr": "xnan"}, "neither a number nor a factor"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Rule(**rule)


def test_a_rule_that_matches_nothing_is_an_error_that_shows_names() -> None:
    with pytest.raises(
        ConfigError, match=r"no parameter matches the rule \(match='w_q', lr='x2'\)\. Names look like q, k, v"
    ):
        AdamW(rules=[{"match": "w_q", "lr": "x2"}]).build(parameters())
    with pytest.raises(ConfigError, match="no parameter matches"):
        AdamW(rules=[{"match": "q", "tensor_class": "norm", "lr": "x2"}]).build(parameters())


@each_part
def test_parts_survive_yaml(part: OptimPart) -> None:
    import yaml

    full = part.with_(rules=[Rule(match="q", lr="x2", weight_decay=0.0), Rule(tensor_class="head", lr=3e-4)])
    assert optim.parse(yaml.safe_load(dump_yaml(full.model_dump(mode="json")))) == full


def test_yaml_numbers_without_a_dot_are_numbers() -> None:
    """PyYAML reads 3e-4 as text."""
    assert Rule(match="q", lr="3e-4").lr == 3e-4


def test_the_shapes_cover_every_tensor_class() -> None:
    from slm.model.classes import CLASSES

    assert {c for c, _ in SHAPES.values()} == set(CLASSES)
