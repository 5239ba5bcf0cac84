from __future__ import annotations

import itertools
import math

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.config.errors import ConfigError
from slm.train.schedule import (
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    MultiStep,
    SchedulePart,
    Trapezoid,
    WarmupStableDecay,
    schedule,
)


def curve(part: SchedulePart, total: int = 100) -> list[float]:
    return [part.factor(s, total=total, batch_tokens=1000, params=10_000) for s in range(total)]


SHAPES = {"linear": {}, "1-sqrt": {}, "cosine": {}, "exponential": {"floor": 0.05}}


@pytest.mark.parametrize("shape", SHAPES)
def test_wsd_rises_stays_and_falls(shape: str) -> None:
    f = curve(WarmupStableDecay(warmup="10 steps", decay="20%", shape=shape, **SHAPES[shape]))
    assert f[0] == pytest.approx(1 / 11)
    assert f[:11] == sorted(f[:11])
    assert all(x == 1 for x in f[10:80])
    assert f[80:] == sorted(f[80:], reverse=True)
    assert 1 > f[80] > f[81]
    assert 0 < f[-1] < 0.06


def test_wsd_linear_values_and_floor() -> None:
    f = curve(WarmupStableDecay(warmup="0 steps", decay="4 steps", floor=0.5), total=10)
    assert f == pytest.approx([1] * 6 + [0.9, 0.8, 0.7, 0.6])


def test_what_the_shapes_are() -> None:
    """At the middle of a decay of 9 steps (the fifth of them)."""

    def middle(**fields: object) -> float:
        return curve(WarmupStableDecay(warmup="0 steps", decay="9 steps", **fields), total=20)[15]

    assert middle() == pytest.approx(0.5)
    assert middle(floor=0.2) == pytest.approx(0.6)
    assert middle(shape="1-sqrt") == pytest.approx(1 - math.sqrt(0.5))
    assert middle(shape="cosine", floor=0.2) == pytest.approx(0.6)
    f = curve(WarmupStableDecay(warmup="0 steps", decay="9 steps", shape="exponential", floor=0.1), total=20)
    ratios = [b / a for a, b in itertools.pairwise(f[10:])]
    assert ratios == pytest.approx([0.1 ** (1 / 10)] * 9)  # MiniCPM's 0.5^(steps / tau): the same factor at every step


def test_an_exponential_decay_needs_somewhere_to_end() -> None:
    with pytest.raises(ConfigError, match="never reaches 0"):
        WarmupStableDecay(shape="exponential")


def test_trapezoid_is_wsd() -> None:
    assert curve(Trapezoid(warmup="5%", decay="30%")) == curve(WarmupStableDecay(warmup="5%", decay="30%"))
    assert schedule.parse("trapezoid").part_name == "trapezoid"


def test_warmup_and_decay_in_tokens() -> None:
    a = curve(WarmupStableDecay(warmup="10k tokens", decay="1 tokens_per_param"))
    assert a == curve(WarmupStableDecay(warmup="10 steps", decay="10 steps"))


def test_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="exceed the budget of 10 steps"):
        curve(WarmupStableDecay(warmup="6 steps", decay="6 steps"), total=10)
    with pytest.raises(pydantic.ValidationError, match="'2 h' is a time"):
        curve(WarmupStableDecay(warmup="2h"))


def test_cosine_ends_at_its_floor() -> None:
    f = curve(Cosine(warmup="10 steps", floor=0.1))
    assert max(f) == pytest.approx(1, abs=1e-3)
    assert f[55] == pytest.approx(0.55)
    assert f[-1] == pytest.approx(0.1, abs=0.01)


def test_linear_is_a_line_to_zero() -> None:
    f = curve(Linear(warmup="20 steps"))
    assert f[20] == 1
    assert f[60] == pytest.approx(0.5)
    assert f[-1] == pytest.approx(1 / 80)


def test_constant_stays() -> None:
    f = curve(Constant(warmup="4 steps"))
    assert f[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert set(f[4:]) == {1.0}


def test_inverse_sqrt_is_that_of_the_transformer() -> None:
    f = curve(InverseSqrt(warmup="9 steps"))
    assert f == pytest.approx([min((s + 1) / 10, math.sqrt(10 / (s + 1))) for s in range(100)])
    slow = curve(InverseSqrt(warmup="9 steps", timescale="40 steps", decay="20 steps"))
    assert slow[49] == pytest.approx(math.sqrt(0.5))
    assert slow[80] == pytest.approx(math.sqrt(40 / 111) * 20 / 21)
    assert slow[-1] < 0.04


def test_multistep_is_deepseeks() -> None:
    f = curve(MultiStep(warmup="2 steps"))
    assert (f[79], f[80], f[89], f[90], f[99]) == (1, 0.316, 0.316, 0.1, 0.1)


def test_multistep_through_points() -> None:
    points = [{"at": "20 steps", "factor": 0.5}, {"at": "60k tokens", "factor": 0.5}, {"at": "80%", "factor": 0.0}]
    f = curve(MultiStep(warmup="10 steps", milestones=points, interpolate=True))
    assert (f[10], f[15], f[20], f[60], f[70], f[80], f[99]) == pytest.approx((1, 0.75, 0.5, 0.5, 0.25, 0, 0))


@pytest.mark.parametrize(
    "places", [("50 steps", "50%"), ("60 steps", "50 steps"), ("1 steps",), ("100 steps",), ("2M tokens",)]
)
def test_milestones_out_of_order_are_refused(places: tuple[str, ...]) -> None:
    part = MultiStep(warmup="2 steps", milestones=[{"at": at, "factor": 0.5} for at in places])
    with pytest.raises(ConfigError, match="each must come after the one before it"):
        curve(part)


ANY: dict[str, SchedulePart] = {name: cls() for name, cls in schedule.parts.items()} | {
    "exponential": WarmupStableDecay(shape="exponential", floor=0.1),
    "1-sqrt": WarmupStableDecay(shape="1-sqrt", floor=0.02, warmup="7 steps"),
    "points": MultiStep(interpolate=True),
}


@given(st.sampled_from(list(ANY)), st.integers(30, 3000))
def test_every_factor_is_a_share_of_the_peak_and_the_peak_is_reached(name: str, total: int) -> None:
    f = curve(ANY[name], total)
    assert all(0 < x <= 1 for x in f)
    assert max(f) > 0.95


@pytest.mark.parametrize("floor", [-0.1, 1.5])
def test_a_floor_is_a_share(floor: float) -> None:
    with pytest.raises(ValueError):
        WarmupStableDecay(floor=floor)
