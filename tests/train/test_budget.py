"""How long to train."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.config.compose import compose
from slm.config.errors import ConfigError
from slm.model.config import Model
from slm.run import Run
from slm.train.budget import UNITS, Budget
from slm.train.config import Budget as FromConfig
from slm.train.course import Course, resolved
from slm.train.schedule import BatchPlan, Constant

BATCH = 1000
SHARED = Model(dim=32, layers=2, vocab=64, embedding="tied", layout={"name": "uniform", "repeat": 2}).costs()


def test_five_units_say_the_same() -> None:
    flops = SHARED.flops_per_token["train"]
    tokens = 20 * SHARED.params["unique"]
    steps = round(tokens / BATCH)
    for budget in (
        {"tokens_per_param": 20},
        {"tokens": tokens},
        {"steps": steps},
        {"flops": tokens * flops},
        {"hours": tokens / 500 / 3600, "tokens_per_s": 500},
    ):
        assert Budget(**budget).total_steps(SHARED, BATCH) == steps, budget
        steps = Budget(**budget).total_steps(SHARED, BATCH)
        course = Course(BatchPlan(1, steps, (0,), (0,), (BATCH,)), Constant(), BATCH, SHARED.params["unique"])
        found = resolved(course, SHARED)
        assert (found.steps, found.tokens) == (steps, steps * BATCH)
        assert found.flops == flops * steps * BATCH
        assert found.chinchilla == pytest.approx(1, abs=0.02)
        assert "x Chinchilla" in str(found)


def test_which_parameters_are_counted_is_explicit() -> None:
    counts = SHARED.params
    assert counts["non_embedding"] < counts["unique"] < counts["total"]
    for name in ("unique", "non_embedding", "total"):
        steps = Budget(tokens_per_param=100, params=name).total_steps(SHARED, BATCH)
        assert steps == round(100 * counts[name] / BATCH)


def test_stored_parameters_alone_do_for_what_needs_no_more() -> None:
    assert Budget(tokens_per_param=20).total_steps(5000, BATCH) == 100
    assert Budget(tokens=1e5).total_steps(5000, BATCH) == 100
    assert Budget(tokens=1).total_steps(5000, BATCH) == 1
    for budget in ({"flops": 1e12}, {"tokens_per_param": 20, "params": "total"}):
        with pytest.raises(ConfigError, match="the model's costs are needed"):
            Budget(**budget).total_steps(5000, BATCH)


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ({}, "exactly one of tokens_per_param, tokens, steps, flops, hours; got none"),
        ({"tokens": 1, "steps": 1}, "got tokens, steps"),
        ({"hours": 1}, "hours needs tokens_per_s"),
        ({"steps": 1, "tokens_per_s": 10}, "hours needs tokens_per_s, and the other way round"),
        ({"steps": 1, "params": "total"}, "goes with tokens_per_param; this budget is in steps"),
    ],
)
def test_contradictions_are_refused(budget: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Budget(**budget)


def test_hours_give_steps_by_the_config_alone_and_the_clock_only_cuts() -> None:
    budget = Budget(hours=2, tokens_per_s=1000)
    assert budget.total_steps(SHARED, BATCH) == 7200
    assert [budget.out_of_time(s) for s in (0, 7199.9, 7200, 1e9)] == [False, False, True, True]
    assert not Budget(steps=1).out_of_time(1e9)


@pytest.mark.parametrize(
    "given", [{"tokens_per_param": 20, "params": "total"}, {"hours": 1, "tokens_per_s": 9.0}, {"flops": 1e12}]
)
@pytest.mark.parametrize("unit", [u for u in UNITS if u != "hours"])
def test_one_override_replaces_a_recipes_budget_whole(given: dict, unit: str, tiny) -> None:
    """What belongs to the other unit goes with it, and the notes say so."""
    from slm.config.yaml import dump_yaml

    Path("recipe.yaml").write_text(dump_yaml(tiny(train__budget=given).model_dump(mode="json")))
    composed = compose("recipe.yaml", [f"train.budget.{unit}=7"], schema=Run)
    budget = composed.config.train.budget
    assert {u for u in UNITS if getattr(budget, u) is not None} == {unit}
    assert budget.tokens_per_s is None
    if unit not in given:
        assert any(note.startswith(f"train.budget: {unit} replaces") for note in composed.notes)


def test_it_is_still_where_it_was() -> None:
    assert FromConfig is Budget
