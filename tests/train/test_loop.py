"""Training as a whole, in this process."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import yaml

from slm import checkpoint
from slm.config.errors import ConfigError, RunError
from slm.data.prepare import prepare
from slm.generate import Sampling, generate
from slm.run import Run
from slm.train import loop
from slm.train.loop import Session, TrainResult, train
from slm.train.measure import OF_THE_MACHINE
from slm.train.metrics import read_metrics
from slm.train.parallel.world import World
from slm.train.progress import Silent
from slm.train.step import Stepper

ALONE = World(0, 1, torch.device("cpu"))


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def go(run: Run) -> TrainResult:
    return train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), ALONE)


def weights(path: Path | str) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.latest(Path(path))).model


def timeless(path: Path | str) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in OF_THE_MACHINE} for r in read_metrics(Path(path) / "metrics.jsonl")]


def test_it_learns_and_writes_everything_down(tiny) -> None:
    result = go(tiny(train__budget={"steps": 60}))
    records = read_metrics(result.run_dir / "metrics.jsonl")
    train_records = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train_records] == list(range(1, 61))
    assert train_records[-1]["loss"] < 0.7 * train_records[0]["loss"]
    assert train_records[-1]["tokens"] == 60 * 256
    assert {r["step"] for r in records if r["kind"] == "eval"} == set(range(6, 61, 6))
    assert train_records[0]["mfu_causal"] is None  # a CPU's peak isn't known, and isn't guessed
    assert not result.interrupted


def test_mean_loss_between_records_is_the_mean_of_the_steps(tiny) -> None:
    go(tiny(log__dir="every"))
    go(tiny(log__dir="third", log__every=3))
    each = [r["loss"] for r in timeless("every") if r["kind"] == "train"]
    third = [r["loss"] for r in timeless("third") if r["kind"] == "train"]
    assert third[0] == pytest.approx(sum(each[:3]) / 3, rel=0.02)  # batches differ slightly in their number of targets


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", [3, 4, 7])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tiny, optim: str, stop_at: int) -> None:
    go(tiny(log__dir="whole", train__optim=optim, log__every=5))
    run = tiny(log__dir="parts", train__optim=optim, log__every=5)
    real = Session.train_step

    def dies(self: Session) -> None:
        if self.state.step == stop_at:
            raise RuntimeError("killed")
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Session, "train_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            go(run)
    go(run)
    a, b = weights("whole"), weights("parts")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert timeless("whole") == timeless("parts")


def test_micro_batches_and_attention_backends_do_not_change_the_result(tiny) -> None:
    go(tiny(log__dir="a"))
    go(tiny(log__dir="b", impl__micro_batch=3))
    go(tiny(log__dir="c", impl__attention="sdpa"))
    for other in ("b", "c"):
        for n, w in weights("a").items():
            torch.testing.assert_close(weights(other)[n], w, atol=1e-4, rtol=1e-4)


def test_bf16_follows_fp32(tiny) -> None:
    go(tiny(log__dir="a"))
    go(tiny(log__dir="b", train__precision="bf16"))
    pairs = [(x["loss"], y["loss"]) for x, y in zip(timeless("a"), timeless("b"), strict=True) if x["kind"] == "train"]
    assert max(abs(x / y - 1) for x, y in pairs) < 0.01


def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny, monkeypatch) -> None:
    real = Stepper._forward_backward

    def poisoned(self: Stepper, batch, targets) -> None:
        real(self, batch, targets)
        if self.state.step == 2:
            next(self.state.model.parameters()).grad.fill_(float("nan"))

    monkeypatch.setattr(Stepper, "_forward_backward", poisoned)
    result = go(tiny())
    assert result.skipped == 1
    records = [r for r in timeless(result.run_dir) if r["kind"] == "train"]
    assert [r["skipped"] for r in records] == [0, 0] + [1] * 10
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_another_experiment_in_the_directory_is_refused_with_the_difference(tiny) -> None:
    go(tiny())
    with pytest.raises(ConfigError, match=r"train\.optim\.lr: 0\.003 -> 0\.001"):
        go(tiny(train__optim={"name": "adamw", "lr": 1e-3}))


def test_settings_that_are_newer_than_the_directory_have_their_defaults(tiny) -> None:
    from slm.train.rundir import refuse_other_experiment

    run = tiny()
    go(run)
    file = Path("runs/tiny/config.yaml")
    old = yaml.safe_load(file.read_text())
    del old["train"]["ema"], old["train"]["spikes"], old["data"]["packing"]
    file.write_text(yaml.safe_dump(old))
    refuse_other_experiment(run, Path("runs/tiny"))
    with pytest.raises(ConfigError, match=r"data\.packing: \"best_fit\" -> \"concat\""):
        refuse_other_experiment(tiny(data__packing="concat"), Path("runs/tiny"))


def test_changed_implementation_is_allowed_and_said(tiny) -> None:
    go(tiny())
    said = Said()
    run = tiny(impl__micro_batch=2)
    assert train(run, prepare(run.data, run.tokenizer, "data"), ALONE, said).step == 12
    assert "Executed differently from here on: impl.micro_batch: null -> 2" in said.lines


def test_a_clock_that_jumps_is_no_clock_of_the_run(tiny, monkeypatch) -> None:
    """The time of day may be set back by hours: seconds and rates come from a clock that only goes forward."""
    import time

    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    result = go(tiny())
    found = [r for r in read_metrics(result.run_dir / "metrics.jsonl") if r["kind"] == "train"]
    assert 0 < result.seconds < 600
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(found))
    assert all(r["tokens_per_s"] > 0 for r in found)


def test_data_that_cannot_be_read_any_more_ends_the_run_and_what_was_saved_goes_on(tiny, monkeypatch) -> None:
    """The thread that reads ahead dies, in the middle."""
    from slm.data import loader

    real, calls = loader.make_batch, []

    def fails(plan, rows):
        calls.append(rows)
        if len(calls) == 8:
            raise RunError("data/store/shards/00000.tok: can't be read (Input/output error).")
        return real(plan, rows)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "make_batch", fails)
        with pytest.raises(RunError, match="Input/output error"):
            go(tiny(log__dir="hurt"))
    go(tiny(log__dir="hurt"))
    go(tiny(log__dir="whole"))
    assert timeless("hurt") == timeless("whole")


def test_a_directory_in_use_is_refused(tiny) -> None:
    from slm.train.rundir import claimed

    with claimed(tiny(), Path("runs/tiny")), pytest.raises(RunError, match="another process is training there"):
        go(tiny())


def test_a_corrupt_checkpoint_is_named_and_not_passed_over(tiny) -> None:
    result = go(tiny())
    model = checkpoint.latest(result.run_dir) / "model.safetensors"
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    with pytest.raises(RunError, match=r"model\.safetensors: damaged between byte"):
        go(tiny())


def test_changed_data_is_refused(tiny, tmp_path: Path) -> None:
    from slm.data.plan.of_corpus import plan_of

    run = tiny()
    go(run)
    store = prepare(run.data, run.tokenizer, run.impl.data_dir)
    other = prepare(
        run.data.with_(source={"name": "synthetic", "seed": 5, "count": 96, "length": 40}), run.tokenizer, "data"
    )
    assert plan_of(store, run.data).hash != plan_of(other, run.data).hash
    with pytest.raises(RunError, match="data changed under the run"):
        train(run, other, ALONE)


def test_a_schedule_longer_than_the_budget_is_refused_before_anything_is_spent(tiny) -> None:
    with pytest.raises(ConfigError, match="exceed the budget"):
        go(tiny(train__schedule={"name": "wsd", "warmup": "9 steps", "decay": "9 steps"}))


def test_an_end_beyond_the_budget_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match=r"train.until=13 is beyond the run's 12 steps"):
        go(tiny(train__until=13))
    assert go(tiny(train__until=12)).step == 12


def test_the_largest_seeds_train(tiny) -> None:
    largest = (1 << 63) - 1
    run = tiny(train__seed=largest, data__seed=largest)
    assert go(run).step == 12
    sampling = Sampling(seed=largest)
    assert list(generate(go(run).model, [1, 2], max_new_tokens=4, sampling=sampling))


def test_a_mirror_that_breaks_does_not_stop_training(tiny, monkeypatch) -> None:
    from slm.train import mirror

    def broken(*_: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(mirror, "WandbMirror", broken)
    assert go(tiny(log__wandb={"mode": "online"})).step == 12


def test_metrics_are_json_lines(tiny) -> None:
    result = go(tiny())
    for line in (result.run_dir / "metrics.jsonl").read_text().splitlines():
        assert set(json.loads(line)) >= {"kind", "step"}


def test_averaged_weights_are_what_is_evaluated_saved_and_handed_on(tiny) -> None:
    """Schedule-free training: the model at the end, the one in the checkpoint and the evaluated one are the averages."""
    run = tiny(train__optim={"name": "schedule_free", "lr": 0.01})
    result = go(run)
    saved = checkpoint.load(checkpoint.latest(result.run_dir))
    assert any("train_weights" in name for name in saved.optimizer)  # what a resume trains on lies aside
    for name, p in result.model.named_parameters():
        assert torch.equal(p, saved.model[name])
    evaluated = [r["heldout_bpb"] for r in read_metrics(result.run_dir / "metrics.jsonl") if r["kind"] == "eval"]
    assert evaluated[-1] < evaluated[0]
    again = go(
        tiny(train__optim={"name": "schedule_free", "lr": 0.01}, log__dir="runs/again", train__budget={"steps": 12})
    )
    assert all(torch.equal(p, q) for p, q in zip(result.model.parameters(), again.model.parameters(), strict=True))
