"""The trainer and its checkpoints: damage, consent, retention, failures in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm import checkpoint
from slm.checkpoint import writing
from slm.config.errors import RunError
from slm.data.prepare import prepare
from slm.run import Run
from slm.train.loop import TrainResult, train
from slm.train.parallel.world import World

Tiny = Callable[..., Run]
LOG = {"every": 1, "eval_every": "4 steps", "checkpoint_every": "4 steps", "eval_rows": 8}


def go(run: Run) -> TrainResult:
    store = prepare(run.data, run.tokenizer, run.impl.data_dir)
    return train(run, store, World(0, 1, torch.device("cpu")))


def log(**changes: Any) -> dict[str, Any]:
    return LOG | changes


def test_consent_goes_on_from_the_newest_whole_one_to_the_same_end(tiny: Tiny) -> None:
    result = go(tiny(log=log(keep=3)))
    last = checkpoint.latest(result.run_dir)
    assert last is not None
    whole = checkpoint.load(last).model
    raw = bytearray((last / "optimizer.safetensors").read_bytes())
    raw[-1] ^= 1
    (last / "optimizer.safetensors").write_bytes(raw)
    with pytest.raises(
        RunError, match=r"optimizer\.safetensors: damaged .*log\.resume=latest-valid.*step-00000008 is whole"
    ):
        go(tiny(log=log(keep=3)))
    go(tiny(log=log(keep=3, resume="latest-valid")))
    again = checkpoint.load(last).model
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert [c.step for c in checkpoint.listing(result.run_dir)] == [4, 8, 12]
    assert (last.parent / f"damaged-{last.name}").is_dir()


def test_evaluated_steps_have_their_bits_and_the_best_stays(tiny: Tiny) -> None:
    result = go(tiny(log=log(checkpoint_every="2 steps", keep={"last": 1, "best": 1, "every": "6 steps"})))
    found = {c.step: c.heldout_bpb for c in checkpoint.listing(result.run_dir)}
    assert set(found) == {6, 12}  # 12 is the newest and the best, 6 the first of its stretch
    assert found[6] is None
    assert found[12] is not None


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_ends_the_run_and_names_what_is_whole(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:  # fmt: skip
    real, calls = writing.write_texts, 0

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    run = tiny(log=log(checkpoint_async=asynchronous))
    with monkeypatch.context() as patched:
        patched.setattr("slm.checkpoint.saver.write_texts", full)
        with pytest.raises(RunError, match=r"step 8 .*No space left on device.*step-00000004, is whole"):
            go(run)
    assert [p.name for p in Path("runs/tiny/checkpoints").iterdir() if p.name != "latest"] == ["step-00000004"]
    assert go(run).step == 12


def test_an_optimiser_with_another_state_is_refused(tiny: Tiny) -> None:
    """Where the experiment's identity doesn't stop it first."""
    from slm.train.loop import Session
    from slm.train.progress import Silent

    result = go(tiny())
    other = tiny(train__optim={"name": "lion"})
    store = prepare(other.data, other.tokenizer, other.impl.data_dir)
    session = Session(other, store, World(0, 1, torch.device("cpu")), result.run_dir, Silent())
    with pytest.raises(RunError, match="under 'optimizer' isn't what this run needs"):
        session.start()
    session.close()
