"""A branch is the run that it stands for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.config.durations import Duration
from slm.config.errors import ConfigError
from slm.train.schedule import (
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    MultiStep,
    SchedulePart,
    WarmupStableDecay,
    branch_of,
    check_branch,
    shared_until,
)

LENGTH: dict[str, Any] = {"batch_tokens": 1000, "params": 10_000}


def factors(part: SchedulePart, total: int, steps: int | None = None) -> list[float]:
    return [part.factor(s, total=total, **LENGTH) for s in range(total if steps is None else steps)]


warmups = st.sampled_from(["0 steps", "5 steps", "7k tokens", "0.4 tokens_per_param", "3%"])
floors = st.sampled_from([0.0, 0.07, 0.1, 0.3])
decays = st.sampled_from(["0 steps", "10%", "20%", "12 steps", "15k tokens"])


@st.composite
def schedules(draw: st.DrawFn) -> SchedulePart:
    kind = draw(st.sampled_from([WarmupStableDecay, InverseSqrt, Constant, Cosine, Linear, MultiStep]))
    fields: dict[str, Any] = {"warmup": draw(warmups)}
    if kind in (WarmupStableDecay, InverseSqrt):
        fields |= {
            "decay": draw(decays),
            "floor": draw(floors),
            "shape": draw(st.sampled_from(["linear", "1-sqrt", "cosine"])),
        }
    if kind is InverseSqrt:
        fields["timescale"] = draw(st.sampled_from([None, "30 steps", "10%"]))
    if kind is MultiStep:
        places = draw(
            st.sampled_from(
                [("50%", "80%"), ("20 steps", "50%"), ("20 steps", "40k tokens"), ("20 steps", "60%", "80%")]
            )
        )
        fields |= {"milestones": [{"at": at, "factor": 0.5} for at in places], "interpolate": draw(st.booleans())}
    return kind(**fields)


@given(schedules(), schedules(), st.integers(60, 400), st.integers(60, 400))
def test_what_is_said_to_be_shared_is_equal_bit_for_bit(
    a: SchedulePart, b: SchedulePart, a_total: int, b_total: int
) -> None:
    shared = shared_until(a, a_total, b, b_total, **LENGTH)
    assert factors(a, a_total, shared) == factors(b, b_total, shared)


@given(schedules(), st.integers(60, 400), st.integers(60, 400))
def test_before_the_decay_the_length_of_a_run_does_not_matter(part: SchedulePart, short: int, long: int) -> None:
    """Once what depends on it by a share, the warm-up, is fixed."""
    fixed = part.with_(warmup=Duration(3, "steps"))
    if isinstance(fixed, InverseSqrt):
        fixed = fixed.with_(timescale=None)
    shared = min(fixed.decay_start(total=t, **LENGTH) for t in (short, long))
    assert shared >= 3
    assert factors(fixed, short, shared) == factors(fixed, long, shared)
    if not isinstance(fixed, MultiStep):  # and it is no smaller than it could be
        start = fixed.decay_start(total=short, **LENGTH)
        if start < short:
            assert fixed.factor(start, total=short, **LENGTH) != fixed.factor(start, total=short + 50, **LENGTH)


@given(
    st.sampled_from([Constant, WarmupStableDecay, InverseSqrt]), warmups, st.integers(200, 500), st.integers(20, 150),
    st.sampled_from(["10%", "30 steps", "20k tokens", "50%"]), st.sampled_from(["linear", "1-sqrt", "cosine", None]), floors,
)  # fmt: skip
def test_a_branch_has_the_trunks_rates_up_to_where_it_leaves(
    kind: type[SchedulePart], warmup: str, trunk_total: int, at: int, decay: str, shape: Any, floor: float
) -> None:
    trunk = kind(warmup=warmup)
    branch, total = branch_of(
        trunk, trunk_total=trunk_total, at=at, decay=Duration.parse(decay), shape=shape, floor=floor, **LENGTH
    )
    assert factors(trunk, trunk_total, at) == factors(branch, total, at)
    rest = factors(branch, total)[at:]
    assert len(rest) == total - at > 0
    assert rest == sorted(rest, reverse=True)
    assert rest[0] < trunk.factor(at, total=trunk_total, **LENGTH)
    if decay == "10%":
        assert (total - at) / total == pytest.approx(0.1, abs=0.02)


def test_a_branch_is_the_run_from_the_start() -> None:
    """Of the same total length, with the trunk's warm-up: the factors of all steps."""
    branch, total = branch_of(
        Constant(warmup="10 steps"), trunk_total=1000, at=80, decay=Duration.parse("20%"), **LENGTH
    )
    assert total == 100
    assert factors(branch, total) == factors(WarmupStableDecay(warmup="10 steps", decay="20%"), 100)


def test_several_branches_of_one_trunk_share_it_with_each_other() -> None:
    trunk = WarmupStableDecay(warmup="2%", decay="0 steps")
    branches = [
        branch_of(trunk, trunk_total=1000, at=at, decay=Duration.parse("20%"), **LENGTH) for at in (100, 300, 800)
    ]
    for (a, a_total), (b, b_total) in itertools.pairwise(branches):
        shared = shared_until(a, a_total, b, b_total, **LENGTH)
        assert shared == a_total - round(0.2 * a_total)
        assert factors(a, a_total, shared) == factors(b, b_total, shared)


def test_what_can_not_be_a_branch_is_refused() -> None:
    wsd = WarmupStableDecay(warmup="5%", decay="20%")
    with pytest.raises(ConfigError, match="depends on the run's length all the way"):
        branch_of(Cosine(), trunk_total=100, at=50, decay=Duration.parse("10 steps"), **LENGTH)
    with pytest.raises(ConfigError, match="are the same up to step 80 only"):
        branch_of(wsd, trunk_total=100, at=90, decay=Duration.parse("10 steps"), **LENGTH)
    for decay in ("0 steps", "100%", "120%"):
        with pytest.raises(ConfigError, match="is no step long"):
            branch_of(wsd, trunk_total=100, at=50, decay=Duration.parse(decay), **LENGTH)
    with pytest.raises(ConfigError, match="exceed the budget"):  # inside the warm-up
        branch_of(
            WarmupStableDecay(warmup="50 steps"), trunk_total=200, at=20, decay=Duration.parse("10 steps"), **LENGTH
        )


def test_another_warm_up_is_another_trunk() -> None:
    trunk, branch = Constant(warmup="2%"), WarmupStableDecay(warmup="2%", decay="20%")
    with pytest.raises(ConfigError, match="Give the warm-up in steps or tokens"):
        check_branch(trunk, 1000, branch, 100, at=50, **LENGTH)
    check_branch(trunk, 1000, branch.with_(warmup="20 steps"), 100, at=80, **LENGTH)
    with pytest.raises(ConfigError, match="up to step 80 only"):
        check_branch(trunk, 1000, branch.with_(warmup="20 steps"), 100, at=81, **LENGTH)
    with pytest.raises(ConfigError, match="ends at step 100"):
        check_branch(trunk, 1000, Constant(warmup="20 steps"), 100, at=100, **LENGTH)
