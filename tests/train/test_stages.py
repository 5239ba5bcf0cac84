"""One run in which rows get longer and the mixture changes on the way."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pydantic
import pytest
import torch
from rich.console import Console

from slm import checkpoint
from slm.config.errors import ConfigError
from slm.pipeline import launch
from slm.run import Run
from slm.train.config import Stage
from slm.train.course import Course
from slm.train.metrics import read_metrics
from slm.train.stages import stage_runs

QUICK = {"finish__samples": 0, "finish__export": [], "finish__report": False, "finish__baselines": False}
LONG = {"name": "long", "from": "50%", "change": {"data.seq_len": 64, "model.context": 64, "model.position.base": 5e4}}
STAGES = [{"name": "short"}, LONG, {"name": "gentle", "from": "75%", "change": {"train.optim.lr": 1e-3}}]


def losses(folder: str) -> list[tuple[int, int, float]]:
    return [
        (r["step"], r["tokens"], r["lr"]) for r in read_metrics(Path(folder) / "metrics.jsonl") if r["kind"] == "train"
    ]


def test_steps_tokens_and_rate_go_on_while_rows_get_longer(tiny) -> None:
    run = tiny(train__stages=STAGES, **QUICK)
    assert [s.data.seq_len for s in stage_runs(run)] == [32, 64, 64]  # what changed stays changed
    summary = launch(run)
    assert (summary["name"], summary["steps"], summary["interrupted"]) == ("tiny/3-gentle", 12, False)
    found, plain = losses("runs/tiny/3-gentle"), losses_of_a_plain_run(tiny)
    assert [f[:2] for f in found] == [f[:2] for f in plain]
    assert [f[2] for f in found[:9]] == [f[2] for f in plain[:9]]
    assert found[9][2] == pytest.approx(plain[9][2] / 3)
    state = checkpoint.describe(checkpoint.resolve("runs/tiny/3-gentle"))[1]
    assert state["loader"]["next_row"] == 12 * 256 // 64


def test_what_later_stages_read_is_made_and_checked_before_the_first_one_trains(tiny) -> None:
    """A misspelt path, or a tokenizer that is trained anew on other text, would else be found after the first stage."""
    gone = {"name": "b", "from": "50%", "change": {"data.source": {"name": "local", "paths": ["gone"]}}}
    with pytest.raises(ConfigError, match="gone"):
        launch(tiny(train__stages=[{"name": "a"}, gone], **QUICK))
    other = {"name": "b", "from": "50%", "change": {"data.source": {"name": "synthetic", "count": 64, "seed": 3}}}
    with pytest.raises(ConfigError, match=r"the text of tiny/2-b has another tokenizer than that of tiny/1-a"):
        launch(tiny(tokenizer={"name": "bpe", "vocab": 280}, train__stages=[{"name": "a"}, other], **QUICK))
    assert not list(Path("runs").rglob("metrics.jsonl"))
    assert launch(tiny(train__stages=[{"name": "a"}, other], **QUICK))["steps"] == 12, "bytes are bytes"


def test_stages_of_a_run_whose_batch_grows(tiny) -> None:
    """Small batches make more steps than the budget has full ones."""
    ramp = {"start": 64, "over": "1000 tokens", "shape": "double"}
    run = tiny(train__batch_ramp=ramp, train__stages=[{"name": "a"}, {"name": "b", "from": "75%"}], **QUICK)
    course = Course.of(run, run.costs())
    assert course.total > 12
    assert launch(run)["steps"] == course.total


def losses_of_a_plain_run(tiny) -> list[tuple[int, int, float]]:
    launch(tiny(name="plain", **QUICK))
    return losses("runs/plain")


def test_without_changes_stages_are_bitwise_the_run(tiny) -> None:
    launch(tiny(train__stages=[{"name": "a"}, {"name": "b", "from": "5 steps"}], **QUICK))
    launch(tiny(name="plain", **QUICK))
    a, b = (checkpoint.load(checkpoint.resolve(d)).model for d in ("runs/tiny/2-b", "runs/plain"))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_finished_stages_are_not_trained_again(tiny, monkeypatch) -> None:
    from slm.train.loop import Session

    run, real, steps = tiny(train__stages=STAGES, **QUICK), Session.train_step, list[int]()

    def watched(self: Session) -> None:
        if self.state.step == 7 and 7 not in steps:
            steps.append(7)
            raise RuntimeError("killed")
        steps.append(self.state.step)
        real(self)

    monkeypatch.setattr(Session, "train_step", watched)
    with pytest.raises(RuntimeError, match="killed"):
        launch(run)
    first = list(steps)
    launch(Run(**run.model_dump(mode="json")))
    assert first == list(range(8))
    assert steps[8:] == [6, *range(7, 12)]  # the second stage began at 6 and had no checkpoint of its own yet


def test_a_stage_that_was_removed_is_not_trained_again_behind_a_later_one(tiny, monkeypatch) -> None:
    from slm.train.loop import Session

    run, shown = tiny(train__stages=STAGES, **QUICK), io.StringIO()
    launch(run)
    shutil.rmtree("runs/tiny/1-short")
    Path("runs/tiny/3-gentle/summary.json").unlink()
    monkeypatch.setattr(Session, "train_step", lambda self: pytest.fail(f"step {self.state.step} is taken"))
    assert launch(run, console=Console(file=shown, width=200))["steps"] == 12
    assert "runs/tiny/1-short is gone, and a later stage has begun" in shown.getvalue()
    assert not Path("runs/tiny/1-short").exists()


def test_a_stages_name_is_a_directory() -> None:
    with pytest.raises(pydantic.ValidationError):
        Stage(name="../elsewhere")


def test_a_budget_in_flops_is_the_whole_runs(tiny) -> None:
    run = tiny(train__stages=STAGES, train__budget={"flops": 12 * 256 * tiny().costs().flops_per_token["train"]})
    assert [s.train.budget.steps for s in stage_runs(run)] == [12, 12, 12]
    ramp = {"start": 64, "over": "1000 tokens"}
    with pytest.raises(ConfigError, match="with a batch ramp"):
        stage_runs(tiny(train__stages=STAGES, train__batch_ramp=ramp))
    calm = [{"name": "a"}, {"name": "b", "from": "50%", "change": {"train.optim.lr": 1e-4}}]
    first, second = stage_runs(tiny(train__stages=calm, train__batch_ramp=ramp))
    courses = [Course.of(s, s.costs()) for s in (first, second)]
    assert courses[0].total == courses[1].total
    assert courses[0].tokens(courses[0].end) == pytest.approx(1536, abs=256)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a", "change": {"train.optim.name": "lion"}}], "can't change 'train.optim.name'"),
        ([{"name": "a", "change": {"data.mixture.weights": {}}}], "leads into"),
        (
            [
                {
                    "name": "a",
                    "change": {"model.context": 64, "model.position.base": 5.0, "data.seq_len": 64, "log.nothing.x": 1},
                }
            ],
            "leads into",
        ),
        ([{"name": "a", "change": {"log.dir": "elsewhere"}}], "can't change 'log.dir'"),
        ([{"name": "a", "from": "10%"}], "the first begins at 0"),
        ([{"name": "a"}, {"name": "b", "from": "2 steps"}, {"name": "c", "from": "2 steps"}], "each later one after"),
        ([{"name": "a"}, {"name": "b", "from": "100%"}], "each later one after"),
        ([{"name": "a", "change": {"train.batch_tokens": 512}}], "can't change 'train.batch_tokens'"),
        ([{"name": "a", "change": {"data.seqlen": 64}}], "Did you mean 'data.seq_len'|Did you mean 'seq_len'"),
    ],
)
def test_stages_that_make_no_sense_are_refused(tiny, stages: list[dict], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch(tiny(train__stages=stages, **QUICK))
