"""The order of rows is a permutation of every epoch, whichever way it is computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data.plan import Order
from slm.data.plan.order import STRETCH, Permutation, permute, permute_many, unpermute

SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.integers(1, 500), SEEDS, st.integers(0, 9))
def test_permutation_is_one(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(i, n, seed, epoch) for i in range(n)) == list(range(n))


@settings(deadline=None)
@given(st.integers(1, 2**62), SEEDS, st.integers(0, 2**40), st.data())
def test_array_form_and_inverse_agree_at_any_size(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    one_by_one = [permute(i, n, seed, epoch) for i in index]
    assert permute_many(np.array(index), n, seed, epoch).tolist() == one_by_one
    assert [unpermute(i, n, seed, epoch) for i in one_by_one] == index


def test_known_values() -> None:
    """The order of a run must not change from one version to the next without a word."""
    assert [permute(i, 10, 0, 0) for i in range(10)] == [5, 4, 7, 6, 2, 1, 0, 8, 9, 3]
    assert permute(123_456_789_012, 10**12, 7, 3) == 521_819_156_237


def test_epochs_seeds_and_sources_have_orders_of_their_own() -> None:
    orders = {
        tuple(Permutation.of(100, seed, source, Order()).rows(np.arange(100 * epoch, 100 * (epoch + 1))).tolist())
        for seed in (0, 1)
        for source in ("a", "b")
        for epoch in (0, 1)
    }
    assert len(orders) == 8


ORDERS = st.one_of(
    st.just(Order()),
    st.builds(Order, mode=st.just("blocked"), block=st.integers(1, 20), group=st.integers(1, 5)),
)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 99), ORDERS)
def test_every_row_once_per_epoch_in_both_modes(n: int, seed: int, order: Order) -> None:
    permutation = Permutation.of(n, seed, "web", order)
    rows = permutation.rows(np.arange(3 * n))
    for epoch in range(3):
        part = rows[epoch * n : (epoch + 1) * n].tolist()
        assert sorted(part) == list(range(n))
        assert [permutation.place(row, epoch) for row in part] == list(range(epoch * n, (epoch + 1) * n))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**6), ORDERS, st.lists(st.integers(0, 10**8), max_size=20), st.integers(0, 10**7))
def test_any_places_may_be_asked_for(n: int, order: Order, scattered: list[int], first: int) -> None:
    permutation = Permutation.of(n, 5, "web", order)
    for ranks in (
        np.array(scattered, dtype=np.int64),
        np.arange(first, first + 9),
        np.arange(STRETCH - 3, STRETCH + 3),
    ):
        assert permutation.rows(ranks).tolist() == [int(permutation._rows(np.array([r]))[0]) for r in ranks]


def test_blocked_order_stays_near() -> None:
    """Within a group no more blocks are touched than it has (one more where the epoch's shift divides a block)."""
    order = Order(mode="blocked", block=32, group=4)
    rows = Permutation.of(32 * 100, 0, "web", order).rows(np.arange(32 * 100))
    for group in range(25):
        part = rows[group * 128 : (group + 1) * 128]
        assert len(np.unique(part // 32)) <= 8
        assert not np.array_equal(np.sort(part), part)


@pytest.mark.parametrize("n", [2, 3, 100, 4096, 10_007])
def test_places_are_spread_evenly(n: int) -> None:
    """The first tenth of an epoch is a fair sample of all rows."""
    means = [
        permute_many(np.arange(max(1, n // 10)), n, seed, epoch).mean() / (n - 1)
        for seed in range(20)
        for epoch in range(20)
    ]
    assert abs(np.mean(means) - 0.5) < 0.1
