"""Batches do not depend on how many processes read them, in what portions, or how often they were interrupted."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.errors import ConfigError, RunError
from slm.data.loader import Batch, Loader, make_batch
from slm.data.plan import Horizon, MemoryDocuments, Mixture, Stage
from slm.data.plan.plan import Plan

EOT = 1


def documents(count: int, mark: int) -> MemoryDocuments:
    rng = np.random.default_rng(mark)
    return MemoryDocuments([rng.integers(2, 1000, n) for n in rng.integers(0, 60, count)])


def mixture_plan(**changes: object) -> Plan:
    stages = (
        Stage(weights={"web": 0.8, "code": 0.2}, until="3000 tokens"),
        Stage(weights={"web": 0.3, "code": 0.7}, ramp=True, until="6000 tokens"),
        Stage(weights={"web": 0.5, "code": 0.5}),
    )
    made = {"seq_len": 32, "eot": EOT, "mixture": Mixture(stages=stages)} | changes
    return Plan([("web", documents(80, 1)), ("code", documents(40, 2))], **made)  # type: ignore[arg-type]


PLAN = mixture_plan()
ROWS = 600
STREAM = make_batch(PLAN, range(ROWS))
"""The rows of the run, read in one go."""


def global_batch(loaders: list[Loader], micro: int) -> Batch:
    """One global batch, put together from the micro-batches of all ranks."""
    parts = [part for loader in loaders for part in next(loader).split(micro)]
    columns = {
        n: torch.cat([getattr(p, n) for p in parts]) for n in ("tokens_BT", "targets_BT", "positions_BT", "docs_BT")
    }
    rows = [row for part in parts for row in part.rows]
    assert rows == list(range(rows[0], rows[-1] + 1))
    return Batch(
        **columns,
        first_row=parts[0].first_row,
        rows=range(rows[0], rows[-1] + 1),
        cu_seqlens=parts[0].cu_seqlens,
        max_seqlen=0,
        bound=PLAN.segments,
    )


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_stream_is_the_same_for_any_world_portion_and_history(data: st.DataObject) -> None:
    """Random stretches, each with its own number of processes, batch size, micro-batch: rows follow one another."""
    state: dict[str, int | str] = {"plan": PLAN.hash, "next_row": data.draw(st.integers(0, 200))}
    for _ in range(data.draw(st.integers(1, 4))):
        world = data.draw(st.sampled_from([1, 2, 4, 8]))
        loaders = [Loader(PLAN, world, rank=r, world=world) for r in range(world)]
        for loader in loaders:
            loader.restore(state)
        for _ in range(data.draw(st.integers(1, 3))):
            rows = world * data.draw(st.integers(1, 4))
            for loader in loaders:
                loader.set_batch_rows(rows)
            first = int(state["next_row"])
            batch = global_batch(loaders, data.draw(st.integers(1, 8)))
            assert batch.first_row == first
            assert batch.rows == range(first, first + rows)
            for name in ("tokens_BT", "targets_BT", "positions_BT", "docs_BT"):
                assert torch.equal(getattr(batch, name), getattr(STREAM, name)[first : first + rows])
            states = [loader.state() for loader in loaders]
            assert all(s == states[0] for s in states)
            state = states[0]
            assert state["next_row"] == first + rows
        for loader in loaders:
            loader.close()


@given(st.integers(1, 24), st.integers(1, 24))
@settings(max_examples=40, deadline=None)
def test_boundaries_of_micro_batches_have_one_shape(rows: int, micro: int) -> None:
    shapes = set()
    for start in (0, 100):
        for part in make_batch(PLAN, range(start, start + rows)).split(micro):
            count, seq_len = part.tokens_BT.shape
            cu = part.cu_seqlens
            assert cu.dtype == torch.int32
            assert cu[0] == 0
            assert cu[-1] == count * seq_len
            starts = (part.positions_BT == 0).flatten().nonzero().flatten()
            assert torch.equal(cu[: len(starts)].long(), starts)
            assert (cu[len(starts) :] == count * seq_len).all()
            assert int(cu.diff().max()) <= part.max_seqlen
            shapes.add((count, len(cu)))
    assert len(shapes) == len({count for count, _ in shapes})


def test_more_segments_than_the_bound_take_a_longer_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.data.plan.rows.SegmentBound.of", lambda *_: 4)
    batch = make_batch(PLAN, range(8))
    starts = (batch.positions_BT == 0).flatten().nonzero().flatten()
    assert torch.equal(batch.cu_seqlens[: len(starts)].long(), starts)
    assert int(batch.cu_seqlens[-1]) == 8 * 32


def test_state_is_small_and_counts_consumed_rows_only() -> None:
    loader = Loader(PLAN, 4)
    next(loader), next(loader)
    assert loader.state() == {"plan": PLAN.hash, "next_row": 8}  # read-ahead isn't consumed
    assert len(json.dumps(loader.state())) < 1000
    loader.close()


def test_changed_data_is_refused_field_by_field(tmp_path: Path) -> None:
    old = mixture_plan(cache_dir=tmp_path)
    state = Loader(old, 4, next_row=12).state()
    said: list[str] = []
    with Loader(mixture_plan(cache_dir=tmp_path, seed=5, policy="concat"), 4, say=said.append) as loader:
        with pytest.raises(
            RunError, match=r"data changed under the run.*packing: \"best_fit\" -> \"concat\"; seed: 0 -> 5"
        ):
            loader.restore(state)
        assert loader.next_row == 0
        loader.restore(state, allow_data_change=True)
        assert loader.next_row == 12
        assert "from row 12 on" in said[0]
        assert "seed: 0 -> 5" in said[0]
    with Loader(mixture_plan(seed=5), 4) as elsewhere, pytest.raises(RunError, match="no longer known here"):
        elsewhere.restore(state)


def test_uneven_worlds_are_refused() -> None:
    with pytest.raises(ConfigError, match="can't be shared equally by 3 processes"):
        Loader(PLAN, 4, world=3)
    with Loader(PLAN, 4, world=2) as loader, pytest.raises(ConfigError, match="batch of 5 rows"):
        loader.set_batch_rows(5)


class Flaky(MemoryDocuments):
    """Documents of which one can't be read, until it is mended."""

    broken = True

    def take(self, offset: int, length: int) -> np.ndarray:
        if self.broken and offset <= 330 < offset + length:
            raise RunError("block 0 is damaged")
        return super().take(offset, length)


def test_an_error_comes_with_the_batch_that_has_it() -> None:
    docs = Flaky([range(i * 31, i * 31 + 31) for i in range(40)])
    plan = Plan([("a", docs)], seq_len=32, eot=EOT)
    [bad] = [o.row for o in plan.where(330 // 31, rows=40)]
    with Loader(plan, 1) as loader:
        for _ in range(bad):
            next(loader)
            time.sleep(0.001)  # the read-ahead has had its chance to fail
        for _ in range(2):
            with pytest.raises(RunError, match="block 0 is damaged"):
                next(loader)
        assert loader.state()["next_row"] == bad
        docs.broken = False
        assert next(loader).first_row == bad


def test_the_loader_ends_with_the_plan() -> None:
    mixture = Mixture(stages=[Stage(weights={"a": 1.0})], max_epochs={"a": 2}, on_exhaust="stop")
    plan = Plan([("a", documents(9, 3))], seq_len=32, eot=EOT, mixture=mixture, horizon=Horizon(rows=10**6))
    assert plan.limit == 2 * plan.rows_per_epoch
    with Loader(plan, 3) as loader:
        assert len(list(loader)) == plan.limit // 3
        with pytest.raises(StopIteration):
            next(loader)


def test_closing_waits_for_the_reader() -> None:
    reading: list[str] = []

    class Slow(MemoryDocuments):
        def take(self, offset: int, length: int) -> np.ndarray:
            reading.append("begun")
            time.sleep(0.02)
            reading.append("done")
            return super().take(offset, length)

    loader = Loader(Plan([("a", Slow([[5] * 20] * 40))], seq_len=64, eot=EOT), 4)
    next(loader)
    loader.close()
    count = len(reading)
    assert reading.count("begun") == reading.count("done")
    time.sleep(0.1)
    assert len(reading) == count  # nothing reads a closed store
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(loader)


def consume(folder: Path, steps: int) -> None:
    """What training does: go on from the last checkpoint, write one every few steps. The digest stands for the weights."""
    plan = mixture_plan(cache_dir=folder / "cache")
    checkpoint = folder / "checkpoint.json"
    saved = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "digest": ""}
    with Loader(plan, 4) as loader:
        if saved["step"]:
            loader.restore(saved["loader"])
        step, digest = saved["step"], saved["digest"]
        while step < steps:
            batch = next(loader)
            digest = hashlib.sha256(digest.encode() + batch.tokens_BT.numpy().tobytes()).hexdigest()
            step += 1
            time.sleep(0.002)
            if step % 3 == 0 or step == steps:
                aside = checkpoint.with_suffix(f".{os.getpid()}")
                aside.write_text(json.dumps({"step": step, "digest": digest, "loader": loader.state()}))
                os.replace(aside, checkpoint)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times_no_row_is_lost_or_repeated(tmp_path: Path) -> None:
    steps, rng = 700, random.Random(0)  # twenty lives of 30 steps on average: none gets to the end
    context = multiprocessing.get_context("fork")
    for life in range(20):
        worker = context.Process(target=consume, args=(tmp_path, steps))
        worker.start()
        time.sleep(rng.uniform(0.005, 0.12))
        assert worker.is_alive()
        worker.kill()
        worker.join()
        if life == 10:  # also while packings are being written
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    worker = context.Process(target=consume, args=(tmp_path, steps))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    digest = ""
    for step in range(steps):
        batch = make_batch(PLAN, range(4 * step, 4 * step + 4)).tokens_BT
        digest = hashlib.sha256(digest.encode() + batch.numpy().tobytes()).hexdigest()
    assert json.loads((tmp_path / "checkpoint.json").read_text())["digest"] == digest


def test_batches_move_as_a_whole() -> None:
    batch = make_batch(PLAN, range(4)).to("meta")
    assert {t.device.type for t in (batch.tokens_BT, batch.targets_BT, batch.docs_BT, batch.cu_seqlens)} == {"meta"}
    assert batch.max_seqlen == PLAN.max_seqlen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_pinned_batches_and_their_parts() -> None:
    with Loader(PLAN, 4) as plain, Loader(PLAN, 4, pin=True) as pinned:
        a, b = next(plain), next(pinned)
    for part in (b, *b.split(3)):
        assert part.tokens_BT.is_pinned()
        assert part.docs_BT.is_pinned()
    assert torch.equal(a.tokens_BT, b.to("cuda").tokens_BT.cpu())


def test_pinning_changes_every_tensor_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loader(PLAN, 4) as loader:
        expected = next(loader)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t + 1)
    with Loader(PLAN, 4, pin=True) as loader:
        batch = next(loader)
    for name in ("tokens_BT", "targets_BT", "positions_BT", "docs_BT", "cu_seqlens"):
        assert torch.equal(getattr(batch, name), getattr(expected, name) + 1)
    assert (batch.rows, batch.first_row, batch.max_seqlen) == (expected.rows, expected.first_row, expected.max_seqlen)
