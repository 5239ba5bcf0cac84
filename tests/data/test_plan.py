"""The order of the data, as properties."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.errors import ConfigError, RunError
from slm.data.config import Data
from slm.data.loader import Loader
from slm.data.packing import pack
from slm.data.plan import Plan, permute
from slm.data.prepare import prepare
from slm.data.sources import Synthetic
from slm.data.tokenizer import Bytes

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@given(LENGTHS, st.integers(8, 40), st.sampled_from(["best_fit", "concat"]), st.integers(1, 70))
def test_every_prediction_is_in_exactly_one_row(lengths: list[int], seq_len: int, policy: str, window: int) -> None:
    packed = pack(np.array(lengths), seq_len, policy, window)
    seen = Counter(
        (int(d), int(s) + i) for d, s, n in zip(packed.doc, packed.start, packed.length, strict=True) for i in range(n)
    )
    assert seen == Counter((d, i) for d, n in enumerate(lengths) for i in range(n + 1))
    starts = np.concatenate([[0], packed.row_ends[:-1]])
    sizes = [int(packed.length[a:b].sum()) for a, b in zip(starts, packed.row_ends, strict=True)]
    assert min(sizes) > 0
    assert max(sizes) <= seq_len
    if policy == "concat":
        assert all(size == seq_len for size in sizes[:-1])


@given(LENGTHS, st.integers(8, 40))
def test_best_fit_keeps_documents_whole_that_fit(lengths: list[int], seq_len: int) -> None:
    packed = pack(np.array(lengths), seq_len, "best_fit", 1000)
    pieces = Counter(packed.doc.tolist())
    for doc, n in enumerate(lengths):
        assert pieces[doc] == -(-(n + 1) // seq_len)


@given(st.integers(1, 500), st.integers(0, 2**40), st.integers(0, 9))
def test_permutation_is_one(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(i, n, seed, epoch) for i in range(n)) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permute(i, 100, seed, epoch) for i in range(100)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    data = Data(source=Synthetic(count=120, length=30), seq_len=64, heldout=0.1)
    return prepare(data, Bytes(), tmp_path_factory.mktemp("data")), data


def test_an_epoch_of_rows_is_the_text(store) -> None:
    made, data = store
    plan = Plan(made, data)
    pieces = Counter()
    for n in range(plan.rows_per_epoch):
        row = plan.row(n)
        for d in np.unique(row.docs[row.targets >= 0]):
            inside = (row.docs == d) & (row.targets >= 0)
            assert row.positions[inside].tolist() == list(range(inside.sum()))
            tokens, targets = row.tokens[inside], row.targets[inside]
            assert tokens[1:].tolist() == targets[:-1].tolist()
            pieces.update(targets.tolist())
    wanted = Counter(int(t) for d in made.documents("train") for t in [*d.tokens, plan.eot])
    assert pieces == wanted
    assert sum(wanted.values()) == plan.tokens_per_epoch


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 8]), st.integers(0, 40))
def test_global_batches_do_not_depend_on_world_micro_batch_or_resume(store, world: int, micro: int, start: int) -> None:
    made, data = store
    plan = Plan(made, data)
    rows = 8

    def stream(world: int, first: int, count: int) -> np.ndarray:
        loaders = [Loader(plan, rows, rank=r, world=world) for r in range(world)]
        for loader in loaders:
            loader.restore({"plan": plan.hash, "next_row": first})
        batches = []
        for _ in range(count):
            parts = [p for loader in loaders for p in next(loader).split(micro)]
            batches.append(np.concatenate([p.tokens_BT.numpy() for p in parts]))
        for loader in loaders:
            loader.close()
        return np.stack(batches)

    whole = stream(1, 0, 6)
    assert np.array_equal(stream(world, 0, 6), whole)
    assert np.array_equal(stream(world, start * rows, 1)[0], stream(1, start * rows, 1)[0])
    assert np.array_equal(stream(world, 16, 4), whole[2:])


def test_state_counts_consumed_rows_only(store) -> None:
    made, data = store
    loader = Loader(Plan(made, data), 4)
    next(loader), next(loader)
    assert loader.state() == {"plan": loader.plan.hash, "next_row": 8}  # read-ahead isn't consumed
    loader.close()


def test_changed_data_and_uneven_worlds_are_refused(store) -> None:
    made, data = store
    state = Loader(Plan(made, data), 4).state()
    with pytest.raises(RunError, match="data changed under the run"):
        Loader(Plan(made, data.with_(seed=1)), 4).restore(state)
    with pytest.raises(ConfigError, match="can't be shared equally"):
        Loader(Plan(made, data), 4, world=3)
