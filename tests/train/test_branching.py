"""A branch is the run from the start, as far as the trunk's rates are its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import slm

from slm import checkpoint
from slm.config.errors import ConfigError
from slm.data.prepare import prepare
from slm.run import Run
from slm.train.branching import branch
from slm.train.loop import TrainResult, train
from slm.train.metrics import read_metrics
from slm.train.parallel.world import World
from slm.train.stages import stage_runs

ALONE = World(0, 1, torch.device("cpu"))
AT = "runs/tiny/checkpoints/step-00000008"


def go(run: Run) -> TrainResult:
    return train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), ALONE)


@pytest.fixture
def trunk(tiny) -> dict[str, Any]:
    """Settings of a trunk that has been trained."""
    settings = {
        "train__budget": {"steps": 16},
        "train__schedule": {"name": "wsd", "warmup": "2 steps", "decay": "4 steps"},
        "log__keep": 9,
    }
    go(tiny(**settings))
    return settings


def test_a_branch_is_bitwise_the_run_from_the_start(tiny, trunk) -> None:
    result = go(branch(tiny(**trunk), AT))
    whole = go(tiny(log__dir="whole", train__budget={"steps": 12}))
    assert (result.step, result.run_dir) == (12, Path("runs/tiny-branch-8"))
    assert all(torch.equal(p, q) for p, q in zip(result.model.parameters(), whole.model.parameters(), strict=True))
    losses = [
        [(r["step"], r["loss"]) for r in read_metrics(Path(d) / "metrics.jsonl") if r["kind"] == "train"]
        for d in (result.run_dir, "whole")
    ]
    assert losses[0] == losses[1]  # the trunk's records included


LEARNED = {"tokenizer": {"name": "bpe", "vocab": 280}, "data__source": {"name": "synthetic", "count": 96, "length": 40}}
OTHER = {"data__source": {"name": "synthetic", "count": 96, "length": 40, "seed": 5}}


def test_other_text_needs_the_trunks_tokenizer(tiny, trunk) -> None:
    """One that is trained on the run's own text changes with it, and the ids would mean something else without a word."""
    settings = trunk | LEARNED | {"name": "learned", "log__dir": "learned"}
    go(tiny(**settings))
    point = Path("learned/checkpoints/step-00000008")
    other = tiny(**settings | OTHER | {"name": "elsewhere", "log__dir": "elsewhere"})
    with pytest.raises(ConfigError, match=r"another tokenizer.*tokenizer=file tokenizer\.path=.*tokenizer\.json"):
        go(branch(other, str(point)))
    file = {"tokenizer": {"name": "file", "path": str(point / "tokenizer.json")}}
    assert go(branch(tiny(**settings | OTHER | file | {"name": "same", "log__dir": "same"}), str(point))).step == 12
    wrong = {"tokenizer": {"name": "bytes"}}
    with pytest.raises(ConfigError, match=r"has the trunk's model and tokenizer, but .*tokenizer.name"):
        branch(tiny(**settings | OTHER | wrong | {"name": "wrong", "log__dir": "wrong"}), str(point))


def test_given_weights_come_with_their_tokenizer(tiny, trunk) -> None:
    settings = LEARNED | {"log__dir": "learned"}
    go(tiny(**settings))
    given = {"train__init_from": "learned", "log__dir": "on"}
    with pytest.raises(ConfigError, match=r"train\.init_from=learned: its weights were trained with another tokenizer"):
        go(tiny(**settings | OTHER | given))
    assert go(tiny(**settings | given)).step == 12


def test_a_branch_that_has_begun_is_not_given_another_trunk(tiny, trunk) -> None:
    go(branch(tiny(**trunk), AT))
    go(tiny(**trunk | {"name": "other", "train__seed": 1}))
    said = slm("train", "runs/tiny-branch-8/config.yaml", "--branch-from", "runs/other", code=2).stderr
    assert "This run branches from step 8 of experiment" in said


def test_a_branch_that_has_begun_needs_its_trunk_no_more(tiny, trunk) -> None:
    run = branch(tiny(**trunk, finish={"samples": 0, "export": [], "baselines": False}), AT)
    go(run)
    shutil.rmtree("runs/tiny")
    config = "runs/tiny-branch-8/config.yaml"
    said = slm("train", config, "--branch-from", AT, code=1).stderr
    assert said.startswith(f"slm: --branch-from: No checkpoint at '{AT}'")
    assert "A branch that has begun goes on without it: slm train runs/NAME/config.yaml" in said
    slm("train", config)
    assert Path("runs/tiny-branch-8/summary.json").exists()


def test_a_branch_whose_stages_were_over_is_refused(tiny, trunk) -> None:
    run = branch(tiny(**trunk, train__stages=[{"name": "a"}, {"name": "b", "from": "5 steps"}]), AT)
    with pytest.raises(ConfigError, match=r"stage 'b' begins at step 5, but this run branches from step 8"):
        stage_runs(run)


def test_a_branch_goes_on_by_the_same_command_or_by_its_config(tiny, trunk, monkeypatch) -> None:
    from slm.train.loop import Session

    run = branch(tiny(**trunk), AT)
    real = Session.train_step

    def dies(self: Session) -> None:
        if self.state.step == 11:
            raise RuntimeError("killed")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "train_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            go(run)
    again = branch(tiny(**trunk), AT)
    assert again.identity == run.identity
    assert branch(Run(**run.model_dump(mode="json")), AT) == run
    assert go(again).step == 12


def test_a_share_is_one_of_the_branch_and_a_ramp_counts_in_tokens(tiny, trunk) -> None:
    run = branch(tiny(**trunk | {"train__schedule": {"name": "wsd", "warmup": "2 steps", "decay": "20%"}}), AT)
    assert (run.train.budget.steps, str(run.train.schedule.decay)) == (10, "2 steps")
    ramp = {"start": 64, "over": "1000 tokens"}
    settings = trunk | {"train__batch_ramp": ramp, "name": "ramp", "train__budget": {"tokens": 4096}}
    go(tiny(**settings))
    steps = [checkpoint.describe(p)[1] for p in sorted(Path("runs/ramp/checkpoints").glob("step-*"))]
    there = next(s for s in steps if s["tokens"] >= 1500)
    result = go(branch(tiny(**settings), f"runs/ramp/checkpoints/step-{there['step']:08d}"))
    assert result.tokens == pytest.approx(there["tokens"] + 4 * 256, abs=256)


def test_another_mixture_or_rate_is_allowed_another_model_is_not(tiny, trunk) -> None:
    other = {"data__source": {"name": "synthetic", "count": 96, "length": 40, "seed": 3}}
    assert go(branch(tiny(**trunk | other), AT)).step == 12
    with pytest.raises(ConfigError, match=r"the trunk's model and tokenizer, but model\..*model\.dim: 32 -> 64"):
        branch(tiny(**trunk | {"model__dim": 64}), AT)


def test_a_branch_has_the_trunks_batches_and_needs_its_optimiser(tiny, trunk) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_tokens: 256 -> 512"):
        branch(tiny(**trunk | {"train__batch_tokens": 512}), AT)
    for changes, has in (
        ({"train__optim": {"name": "lion"}}, "train.optim=adamw and no"),
        ({"train__ema": {"decay": 0.9}}, "no train.ema"),
    ):
        with pytest.raises(ConfigError, match=rf"it has .*{has}.*train\.init_from={AT}"):
            branch(tiny(**trunk | changes), AT)
    slm("checkpoint", "average", AT, "runs/tiny/checkpoints/step-00000004", "--out", "average")
    with pytest.raises(ConfigError, match=r"no state of an optimiser.*train\.init_from=average"):
        branch(tiny(**trunk), "average")


def test_a_branch_may_look_for_spikes_in_another_window(tiny, trunk) -> None:
    result = go(branch(tiny(**trunk | {"train__spikes": {"sigmas": 6, "window": 4, "after": 2}}), AT))
    assert (result.step, result.skipped) == (12, 0)


def test_what_has_no_plateau_or_is_past_it_cannot_be_left(tiny, trunk) -> None:
    with pytest.raises(ConfigError, match=r"can't leave at step 16.*up to step 12 only"):
        branch(tiny(**trunk), "runs/tiny")
    with pytest.raises(ConfigError, match="has none"):
        branch(tiny(**trunk | {"train__schedule": "cosine"}), AT)
    cosine = trunk | {"train__schedule": {"name": "cosine", "warmup": "2 steps"}, "name": "cosine"}
    go(tiny(**cosine))
    with pytest.raises(ConfigError, match="depends on the run's length all the way"):
        branch(tiny(**cosine | {"train__schedule": {"name": "wsd"}}), "runs/cosine")


def test_another_checkpoint_than_the_one_it_was_set_up_for_is_refused(tiny, trunk) -> None:
    run = branch(tiny(**trunk), AT)
    with pytest.raises(ConfigError, match="branches from step 8"):
        branch(run, "runs/tiny/checkpoints/step-00000004")
