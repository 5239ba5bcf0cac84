"""Batches that grow with the tokens seen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.config.errors import ConfigError
from slm.train.schedule import BatchRamp

SEQ, FULL = 32, 32 * 64
KEYS: dict[str, Any] = {"seq_len": SEQ, "batch_tokens": FULL, "params": 1000}


def test_linear_values() -> None:
    ramp = BatchRamp(start=SEQ * 8, over="10k tokens", multiple=8)
    rows = [ramp.rows_at(t, **KEYS) for t in (0, 1400, 1500, 5000, 9999, 10_000, 10**9)]
    assert rows == [8, 8, 16, 32, 56, 64, 64]


def test_doubling_values() -> None:
    ramp = BatchRamp(start=SEQ * 8, over="9 tokens_per_param", shape="double")
    rows = [ramp.rows_at(t, **KEYS) for t in (0, 2999, 3000, 5999, 6000, 8999, 9000)]
    assert rows == [8, 8, 16, 16, 32, 32, 64]


ramps = st.builds(
    lambda start, over, shape, multiple: BatchRamp(start=SEQ * multiple * start, over=f"{over} tokens", shape=shape, multiple=multiple),
    st.integers(1, 8), st.integers(1, 50_000), st.sampled_from(["linear", "double"]), st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip


@given(ramps, st.lists(st.floats(0, 1e5), min_size=2, max_size=20))
def test_batches_never_shrink_and_stay_whole(ramp: BatchRamp, places: list[float]) -> None:
    rows = [ramp.rows_at(t, **KEYS) for t in sorted(places)]
    assert rows == sorted(rows)
    assert all(r % ramp.multiple == 0 and ramp.start // SEQ <= r <= FULL // SEQ for r in rows)
    assert ramp.rows_at(ramp.tokens(1000), **KEYS) == FULL // SEQ


@given(ramps, st.integers(FULL, 300_000))
def test_the_plan_is_the_function_step_by_step(ramp: BatchRamp, total: int) -> None:
    """Every row once and in order: a batch begins where the one before it ended, and has the size that its place asks for."""
    plan = ramp.plan(total, **KEYS)
    seen = 0
    for step in range(plan.total_steps):
        assert plan.rows_before(step) == seen
        assert plan.tokens_before(step) == seen * SEQ
        assert plan.rows_of(step) == ramp.rows_at(seen * SEQ, **KEYS)
        seen += plan.rows_of(step)
    assert plan.rows_before(plan.total_steps) == seen
    assert abs(seen * SEQ - total) <= FULL


def test_a_ramp_from_the_full_size_is_no_ramp() -> None:
    for shape in ("linear", "double"):
        plan = BatchRamp(start=FULL, over="5k tokens", shape=shape).plan(10 * FULL, **KEYS)
        assert (plan.total_steps, plan.rows) == (10, (64,))


@pytest.mark.parametrize(
    ("ramp", "why"),
    [
        ({"start": 33, "over": "1k tokens"}, "start \\(33 tokens\\) must be a multiple"),
        ({"start": 32, "over": "1k tokens", "multiple": 2}, "must be a multiple of 2 rows"),
        ({"start": 2 * FULL, "over": "1k tokens"}, "is above train.batch_tokens"),
        ({"start": 32, "over": "100 steps"}, "give tokens or tokens_per_param"),
        ({"start": 32, "over": "5%"}, "give tokens or tokens_per_param"),
    ],
)
def test_what_makes_no_sense_is_refused(ramp: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        BatchRamp(**ramp).rows_at(0, **KEYS)
