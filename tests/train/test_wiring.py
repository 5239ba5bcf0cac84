"""What the loop makes of its further settings: averages, skipped outliers, batch ramps, hours, norms, activations, a profile."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
import torch

from slm import checkpoint
from slm.config.durations import Duration
from slm.config.errors import ConfigError, RunError
from slm.data.prepare import prepare
from slm.pipeline import launch
from slm.run import Run
from slm.train.course import Course
from slm.train.loop import Session, TrainResult, train
from slm.train.measure import OF_THE_MACHINE
from slm.train.metrics import read_metrics
from slm.train.objective import LossModule
from slm.train.parallel.world import World
from slm.train.step import Stepper

ALONE = World(0, 1, torch.device("cpu"))


def go(run: Run) -> TrainResult:
    return train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), ALONE)


def records(folder: str | Path, kind: str = "train") -> list[dict[str, Any]]:
    found = [r for r in read_metrics(Path(folder) / "metrics.jsonl") if r["kind"] == kind]
    return [{k: v for k, v in r.items() if k not in OF_THE_MACHINE} for r in found]


def stopped(run: Run, at: int) -> None:
    """Train a run as if it had been killed behind ``at`` steps."""
    real = Session.train_step

    def dies(self: Session) -> None:
        if self.state.step == at:
            raise RuntimeError("killed")
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "train_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            go(run)


def test_the_average_is_what_is_evaluated_and_given_out(tiny) -> None:
    """By the definition: weights of each step, averaged here; and training itself doesn't notice."""
    seen: list[dict[str, torch.Tensor]] = []
    real = Stepper.__call__

    def watched(self: Stepper, batch: Any) -> None:
        real(self, batch)
        seen.append({n: p.detach().clone() for n, p in self.state.model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", watched)
        result = go(tiny(log__dir="ema", train__ema={"decay": 0.7}))
    shares = torch.tensor([0.7 ** (len(seen) - 1 - i) for i in range(len(seen))])
    for name, p in result.model.named_parameters():
        average = sum(w * s[name] for w, s in zip(shares / shares.sum(), seen, strict=True))
        torch.testing.assert_close(p.detach(), average, atol=1e-6, rtol=1e-5)
    plain = go(tiny(log__dir="plain"))
    assert [r["loss"] for r in records("ema")] == [r["loss"] for r in records("plain")]
    assert records("ema", "eval")[-1]["heldout_bpb"] != records("plain", "eval")[-1]["heldout_bpb"]
    saved = checkpoint.load(checkpoint.latest(Path("ema"))).model  # type: ignore[arg-type]
    assert all(torch.equal(saved[n], p) for n, p in plain.model.named_parameters())


RAMP = {"start": 64, "over": "1000 tokens", "shape": "double"}


@pytest.mark.parametrize(
    "changes",
    [{"train__ema": {"half_life": "5 steps"}}, {"train__spikes": {"sigmas": 3, "after": 3, "window": 6}}, {"train__batch_ramp": RAMP}],
    ids=["ema", "spikes", "ramp"],
)  # fmt: skip
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tiny, changes: dict[str, Any]) -> None:
    whole = go(tiny(log__dir="whole", **changes))
    stopped(tiny(log__dir="parts", **changes), at=7)
    parts = go(tiny(log__dir="parts", **changes))
    assert records("whole") == records("parts")
    assert records("whole", "eval") == records("parts", "eval")
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True))


def test_an_outlier_is_skipped_and_too_many_end_the_run(tiny) -> None:
    changes = {"train__spikes": {"above": 50.0, "give_up": 3}, "train__budget": {"steps": 12}}
    real = Stepper._forward_backward

    def spoiled(self: Stepper, batch: Any, targets: torch.Tensor) -> None:
        real(self, batch, targets)
        if self.state.step in bad:
            for p in self.state.model.parameters():
                p.grad.mul_(1e4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "_forward_backward", spoiled)
        bad = {4}
        assert go(tiny(log__dir="one", **changes)).skipped == 1
        assert [r["skipped"] for r in records("one")][3:6] == [0, 1, 1]
        bad = set(range(5, 12))
        often = {"log__checkpoint_every": "1 steps", "log__every": 100}  # more checkpoints than are kept, and no record
        with pytest.raises(
            RunError, match=r"3 steps in a row .* up to step 8 .*many/checkpoints/step-00000005 is the newest .* before"
        ):
            go(tiny(log__dir="many", **often, **changes))
        assert [c.step for c in checkpoint.listing(Path("many"))] == [5, 6, 7]
        bad = set(range(12))
        with pytest.raises(RunError, match=r"up to step 3 .* There is no checkpoint from before"):
            go(tiny(log__dir="never", **often, **changes))


def test_a_ramp_reads_every_row_once_and_has_the_rate_of_its_tokens(tiny) -> None:
    run = tiny(train__batch_ramp=RAMP, train__budget={"tokens": 3072}, log__dir="ramp")
    course = Course.of(run, run.costs())
    assert [course.rows(s) for s in range(course.total)][:8] == [2] * 8
    assert course.rows(course.total - 1) == 8
    assert course.tokens(course.total) == pytest.approx(3072, abs=128)
    go(run)
    assert [r["tokens"] for r in records("ramp")] == [course.tokens(s + 1) for s in range(course.total)]
    assert Course.of(tiny(train__batch_ramp=RAMP), run.costs()) == course  # 12 steps are 3072 tokens
    whole = Course.of(tiny(train__budget={"steps": 12}), run.costs())
    for step in range(course.total):
        assert course.rate(step) == whole.rate(course.tokens(step) // 256)


def test_rows_that_run_out_end_the_course_at_a_whole_batch(tiny) -> None:
    course = Course.of(tiny(train__batch_ramp=RAMP, train__budget={"tokens": 3072}), tiny().costs())
    for rows in range(2, course.total_rows + 3):
        cut = course.within(rows)
        assert cut.total_rows <= rows
        assert cut.total == course.total or cut.batches.rows_before(cut.total) + course.rows(cut.total) > rows


def test_hours_end_a_run_that_is_slower_than_it_said(tiny) -> None:
    """It is over then: evaluated and exported as it is, and not resumed for ever."""
    run = tiny(
        train__budget={"hours": 1e-9, "tokens_per_s": 256 * 12 / 1e-9 / 3600}, finish__export=[], finish__report=False
    )
    summary = launch(run)
    assert summary["steps"] < 12
    assert not summary["interrupted"]
    assert launch(run) == summary


def test_one_loss_that_is_not_a_number_costs_its_step_and_no_more(tiny, monkeypatch) -> None:
    real = LossModule.forward

    def spoiled(self: LossModule, *arguments: Any) -> tuple[torch.Tensor, ...]:
        loss, nll, kl = real(self, *arguments)
        bad = self.training and steps.append(1) is None and len(steps) == 5
        return (loss * float("nan"), nll * float("nan"), kl) if bad else (loss, nll, kl)

    monkeypatch.setattr(LossModule, "forward", spoiled)
    for every in (1, 3):
        steps: list[int] = []
        result = go(tiny(log__every=every, log__dir=f"every-{every}"))
        assert (result.step, result.skipped) == (12, 1)
    assert [r["step"] for r in records("every-1") if r["loss"] is None] == [5]
    assert all(r["loss"] is not None for r in records("every-3"))


def test_what_has_a_length_in_tokens_counts_tokens_also_while_batches_grow(tiny) -> None:
    course = Course.of(tiny(train__batch_ramp=RAMP, train__budget={"tokens": 3072}), tiny().costs())
    for length, tokens in (("50%", 1536), ("1024 tokens", 1024), ("3 steps", 768)):
        step = course.at(Duration.parse(length))
        assert course.tokens(step) <= tokens < course.tokens(step + 1)
    due = [course.tokens(s) for s in range(1, course.total + 1) if course.due(Duration.parse("512 tokens"), s)]
    assert [t // 512 for t in due] == list(range(1, 7))
    go(
        tiny(
            train__batch_ramp=RAMP,
            train__budget={"tokens": 3072},
            log__checkpoint_every="1 steps",
            log__keep={"last": 1, "every": "512 tokens"},
        )
    )
    kept = [course.tokens(c.step) for c in checkpoint.listing(Path("runs/tiny"))]
    assert kept == due
    assert course.at(Duration.parse("0%")) == 0
    assert not course.due(None, 5)


def test_a_length_without_steps_is_refused_before_the_first_step(tiny) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"log\.keep\.every[\s\S]*'2 h' is a time"):
        tiny(log__keep={"last": 1, "every": "2h"})


def test_checkpoints_may_be_due_by_the_clock(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes ten minutes: every third has a checkpoint, and the last."""
    now, real = [0.0], Session.train_step

    def slow(self: Session) -> None:
        real(self)
        now[0] += 600

    monkeypatch.setattr("slm.train.loop.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(Session, "train_step", slow)
    go(tiny(log__checkpoint_every="25 min", log__keep=20, train__budget={"steps": 10}))
    assert [c.step for c in checkpoint.listing(Path("runs/tiny"))] == [3, 6, 9, 10]


def test_a_ramp_that_the_processes_cannot_share_is_refused_at_the_start(tiny) -> None:
    session = Session.__new__(Session)
    session.course = Course.of(tiny(train__batch_ramp=RAMP), tiny().costs())
    session.world = World(0, 4, torch.device("cpu"))
    session.state = SimpleNamespace(step=0)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"a batch of 2 rows, which 4 processes.*multiple"):
        session._check_sizes()
    session.state.step = session.course.total - 1  # what has been is no matter
    session._check_sizes()


def test_activations_of_a_model_compiled_as_a_whole_cannot_be_looked_at(tiny) -> None:
    with pytest.raises(ConfigError, match=r"impl\.compile=blocks"):
        tiny(log__activations=True, impl__compile="whole")


def test_norms_and_activations_are_those_of_the_tensors(tiny) -> None:
    result = go(tiny(log__activations=True, train__clip=0.1))
    last = records(result.run_dir)[-1]
    assert sum(n**2 for n in last["grad_norms"].values()) == pytest.approx(last["grad_norm"] ** 2, rel=1e-5)
    squares = sum(float(p.detach().square().sum()) for p in result.model.parameters())
    assert sum(n**2 for n in last["weight_norms"].values()) == pytest.approx(squares, rel=1e-4)
    assert set(last["grad_norms"]) == {"embedding", "matrix", "norm"}
    assert len(last["activation_rms"]) == len(last["activation_max"]) == 2
    assert all(0 < rms <= most for rms, most in zip(last["activation_rms"], last["activation_max"], strict=True))
    go(tiny(log__dir="off", log__norms=False, train__clip=0.1))
    assert "grad_norms" not in records("off")[-1]
    assert [r["loss"] for r in records("off")] == [r["loss"] for r in records(result.run_dir)]


def test_a_profile_is_a_trace_of_some_steps(tiny) -> None:
    go(tiny(log__profile=2))
    trace = json.loads(gzip.decompress(Path("runs/tiny/profile/rank0.json.gz").read_bytes()))
    assert any("aten::mm" in e.get("name", "") for e in trace["traceEvents"])
    assert "aten::" in Path("runs/tiny/profile/rank0.txt").read_text()
