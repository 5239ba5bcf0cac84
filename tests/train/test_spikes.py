"""Which steps are skipped."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.train.spikes import SpikeGuard, Spikes


def run(guard: SpikeGuard, norms: list[float]) -> list[int]:
    return [int(guard.check(torch.tensor(n))) for n in norms]


def usual(count: int, seed: int = 0, spread: float = 0.1) -> list[float]:
    return (1 + spread * torch.randn(count, generator=torch.Generator().manual_seed(seed))).tolist()


def test_not_finite_is_always_skipped() -> None:
    guard = SpikeGuard(Spikes(), "cpu")
    assert run(guard, [1.0, math.nan, 1e9, math.inf, 1.0]) == [0, 1, 0, 1, 0]
    assert guard.read() == {"not_finite": 2, "outliers": 0, "in_a_row": 0}
    assert run(guard, [math.nan] * 3) == [1, 1, 1]
    assert guard.read() == {"not_finite": 5, "outliers": 0, "in_a_row": 3}


def test_above_is_a_hard_limit() -> None:
    assert run(SpikeGuard(Spikes(above=5.0), "cpu"), [4.9, 5.1, 5.0]) == [0, 1, 0]


def test_an_outlier_is_skipped_and_does_not_blind_the_guard() -> None:
    guard = SpikeGuard(Spikes(sigmas=6, window=64, after=32), "cpu")
    assert not any(run(guard, usual(60)))
    assert run(guard, [50.0, 1.1, 40.0, 0.9, 2.5]) == [1, 0, 1, 0, 1]
    assert not any(run(guard, usual(60, seed=1)))
    assert guard.read() == {"not_finite": 0, "outliers": 3, "in_a_row": 0}


def test_nothing_is_an_outlier_before_there_is_something_to_compare_with() -> None:
    guard = SpikeGuard(Spikes(sigmas=6, window=64, after=32), "cpu")
    assert not any(run(guard, [*usual(30), 100.0]))
    assert not any(run(SpikeGuard(Spikes(sigmas=2, window=8, after=64), "cpu"), [1.0] * 7))


def test_a_window_shorter_than_after_still_begins() -> None:
    assert run(SpikeGuard(Spikes(sigmas=3, window=8, after=64), "cpu"), [*usual(8), 9.0])[-1] == 1


def test_norms_that_hardly_vary_are_no_reason_to_skip() -> None:
    assert not any(run(SpikeGuard(Spikes(sigmas=3, window=8, after=4), "cpu"), [1.0] * 8 + [1.002]))


def test_a_lasting_change_is_let_through_after_a_while() -> None:
    """Each skipped step raises the limit: within a window the guard has learnt."""
    guard = SpikeGuard(Spikes(sigmas=6, window=128, after=64), "cpu")
    run(guard, usual(128))
    skipped = run(guard, [10 * n for n in usual(256, seed=2)])
    assert all(skipped[:5])
    assert not any(skipped[128:])


@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 30.0, math.nan]), max_size=80), st.integers(0, 80))
def test_a_resumed_guard_decides_alike(norms: list[float], stop: int) -> None:
    rules = Spikes(sigmas=4, window=16, after=8)
    whole, first, second = (SpikeGuard(rules, "cpu") for _ in range(3))
    before = run(first, norms[:stop])
    second.restore({k: v.clone() for k, v in first.state().items()})
    assert run(whole, norms) == before + run(second, norms[stop:])
    assert whole.read() == second.read()


def test_another_window_starts_afresh_and_keeps_the_counts() -> None:
    guard = SpikeGuard(Spikes(above=1.0), "cpu")
    run(guard, [2.0, 2.0])
    other = SpikeGuard(Spikes(above=1.0, window=16), "cpu")
    other.restore(guard.state())
    assert (other.read()["outliers"], int(other.seen)) == (2, 0)


def test_the_flag_is_what_optimisers_read() -> None:
    flag = SpikeGuard(Spikes(), "cpu").check(torch.tensor(math.nan))
    assert (flag.shape, flag.dtype, float(flag)) == ((), torch.float32, 1.0)


@pytest.mark.parametrize("wrong", [{"sigmas": 0}, {"window": 1}, {"above": -1.0}, {"after": 0}])
def test_bounds(wrong: dict) -> None:
    with pytest.raises(ValueError):
        Spikes(**wrong)
