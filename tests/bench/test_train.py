"""Every trainer trains the same model on the same rows; how fast they are is no business of tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from slm.bench import train as bench
from slm.bench.training import added, ours, overhead, plain
from slm.bench.training.job import SHAPES, WARMUP, Job, Stopwatch
from slm.cli.main import app
from slm.config.errors import ConfigError, RunError
from slm.train.recording import WARM_UP

STEPS = 20


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Job:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "TEXT_MB", 1)
        root = tmp_path_factory.mktemp("bench")
        return bench._prepared(root, bench.Settings("tiny", STEPS, 1, 1, "cpu"), "fp32")


@pytest.fixture
def job(prepared: Job, tmp_path: Path) -> Job:
    return replace(prepared, out=str(tmp_path / "out"))


def of(name: str) -> Callable[[Job], dict[str, Any]]:
    if name == "HF Trainer":
        pytest.importorskip("accelerate")
        from slm.bench.training.with_transformers import train
    elif name == "litgpt":
        pytest.importorskip("litgpt")
        from slm.bench.training.with_litgpt import train
    else:
        train = {"slm": ours.train, "plain loop": plain.train}[name]
    return train


@pytest.mark.parametrize("name", ["slm", *bench.PEERS])
def test_a_trainer_trains_the_model_and_times_the_steps(name: str, job: Job) -> None:
    report = of(name)(job)
    bench._trained(job, name, [report])  # right size, loss falls
    assert report["amount"] == STEPS * SHAPES["tiny"].batch_tokens
    assert report["wall"] > 0
    assert report["cpu"] > 0


def test_all_read_the_same_rows_at_the_same_rate(job: Job) -> None:
    session = ours.session_of(job)
    try:
        for step in range(3):
            batch = next(session.state.loader)
            inputs, targets = plain.batch_of(job, step, torch.device("cpu"))
            assert torch.equal(batch.tokens_BT, inputs)
            kept = batch.targets_BT >= 0
            assert torch.equal(batch.targets_BT[kept], targets[kept])
            assert kept.float().mean() > 0.9
        for step in range(2 * WARMUP):
            assert job.rate(step) == pytest.approx(session.course.rate(step) * 1e-3, rel=0.3)
    finally:
        session.close()


def test_the_clock_leaves_the_first_steps_out(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 100))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    watch = Stopwatch(replace(job, warm=2, steps=3))
    for _ in range(4):
        watch.lap()
    with pytest.raises(RuntimeError, match="4 of 5 steps"):
        watch.report(0, [])
    watch.lap()
    assert watch.report(0, [])["wall"] == 100  # asked twice: behind the second step and behind the fifth


def test_overheads_have_a_bare_loop_that_trains_and_a_loop_that_writes(job: Job) -> None:
    found = overhead.beside_bare(replace(job, steps=10))
    assert set(found) == {"loop", "bare", "inside", "outside"}
    assert all(part["cpu"] > 0 and part["wall"] > 0 for part in found.values())
    assert found["inside"]["cpu"] > found["outside"]["cpu"] / 2  # a tiny model, but not nothing
    assert "counted" not in torch.Tensor.backward.__qualname__
    found = overhead.watched(job)
    assert set(found) == {"off", "records", "saves", "inside"}
    out = Path(job.out)
    assert not (out / "off" / "metrics.jsonl").read_text()
    assert len((out / "records" / "metrics.jsonl").read_text().splitlines()) == 3
    assert list((out / "saves" / "checkpoints").iterdir())


def canned(losses: tuple[float, ...] = (8.0, 6.0), **params: int) -> Callable[..., dict[str, Any]]:
    """A job that reports without working: so many parameters by trainer, 30,000 tokens in 2 s (ours) or 3 s."""

    def run_job(_: str, trainer: str, job: dict[str, Any]) -> dict[str, Any]:
        if trainer in ("overhead", "watched"):
            parts = {
                "loop": 1.02,
                "bare": 1.0,
                "inside": 9.0,
                "outside": 0.18,
                "off": 1.0,
                "records": 1.1,
                "saves": 1.6,
            }
            return {name: {"cpu": value, "wall": value} for name, value in parts.items()}
        right = SHAPES["tiny"].params(job["vocab"])
        return {
            "wall": 2.0 + (trainer != "slm"),
            "cpu": 2.0 + (trainer != "slm"),
            "amount": 30_000,
            "params": params.get(trainer.replace(" ", "_"), right),
            "losses": list(losses),
            "memory": 2**30,
        }

    return run_job


def can(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Jobs are canned, alone and in slices."""
    job = canned(**options)
    monkeypatch.setattr(bench, "run_job", job)
    monkeypatch.setattr(added, "run_job", job)
    monkeypatch.setattr(bench, "in_slices", lambda who: {n: job(c.job, **c.arguments) for n, c in who.items()})


@pytest.mark.slow
def test_trainers_take_turns_in_slices(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SLICE_S", 0.1)
    found = bench._turn(job, ["slm", "plain loop"])
    for report in found.values():
        assert report["wall"] > 0
        assert report["losses"][-1] < report["losses"][0]
    assert found["slm"]["params"] == found["plain loop"]["params"]


def test_results_say_ratios_targets_and_who_is_missing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    can(monkeypatch)
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == "litgpt" else name)
    found = {one.name: one for one in bench.beside(job, 2)}
    one = found["train, beside plain loop"]
    assert (one.value, one.peer_value, one.ratio, one.met) == (15.0, 10.0, 1.5, True)
    assert found["train, beside litgpt"].peer == "litgpt (not measured: litgpt not installed)"
    assert found["train, beside litgpt"].met is None
    assert "memory, beside litgpt" not in found
    (loop,) = bench.overhead(job, 1)
    assert loop.value == pytest.approx(2.0)
    assert loop.met
    (more,) = bench.records(job, 1)
    assert more.value == pytest.approx(
        1.0 + 0.5
    )  # 1% of records, and 5% of ten steps for a save, spread over a hundred
    assert more.met


def test_on_a_gpu_ours_is_also_recorded_and_compiled_and_the_wall_counts(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way twice as fast as the one before, by the wall; its processors are idle."""
    with pytest.raises(ConfigError, match="--only executed is measured on cuda, and this is cpu"):
        bench.run(("executed",), device="cpu")
    as_told, warm = canned(), set()

    def run_job(kind: str, trainer: str, job: dict[str, Any]) -> dict[str, Any]:
        warm.add(job["warm"])
        faster = list(bench.EXECUTED.values()).index(job["impl"])
        made = Job.of({**job, "device": "cpu", "impl": {k: v for k, v in job["impl"].items() if k == "compile"}})
        assert made.run().impl.compile == job["impl"].get("compile", "none")
        return as_told(kind, trainer, job) | {"wall": 2.0 / 2**faster, "cpu": 0.01}

    monkeypatch.setattr(bench, "run_job", run_job)
    found = list(bench.executed(replace(job, device="cuda"), 2))
    assert [one.name for one in found] == ["train, recorded", "train, compiled", "train, compiled and recorded"]
    assert [one.value for one in found] == [30.0, 60.0, 120.0]
    assert [one.peer_value for one in found] == [15.0] * 3
    assert [one.ratio for one in found] == [2.0, 4.0, 8.0]
    assert min(warm) > WARM_UP + 1  # the recording isn't timed


def test_what_does_not_train_or_is_another_model_is_no_result(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: name)
    can(monkeypatch, litgpt=7)
    with pytest.raises(RunError, match="litgpt trained 7 parameters instead of 336,192"):
        list(bench.beside(job, 1))
    can(monkeypatch, losses=(8.0, 8.0))
    with pytest.raises(RunError, match="loss of slm didn't fall"):
        list(bench.beside(job, 1))


def test_json_table_and_page(prepared: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    can(monkeypatch)
    monkeypatch.setattr(bench, "TEXT_MB", 1)
    page = tmp_path / "page.md"
    asked = ["bench", "train", "--model", "tiny", "--repeats", "1", "--device", "cpu", "--work", prepared.root]
    done = CliRunner().invoke(app, [*asked, "--json", "--markdown", str(page)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "settings", "results"}
    assert report["settings"]["params"] == 336_192
    assert {"transformers", "accelerate", "litgpt", "torch"} <= set(report["machine"]["versions"])
    assert {"train, beside HF Trainer", "overhead, records and checkpoints"} <= {r["name"] for r in report["results"]}
    text = page.read_text()
    assert "# Benchmarks of the trainer" in text
    assert "slm bench train --model tiny --steps 20 --repeats 1 --threads 1 --markdown page.md" in text
    plain_text = CliRunner().invoke(app, [*asked, "--only", "overhead"])
    assert plain_text.exit_code == 0
    assert "the loop over the bare work" in plain_text.stdout


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark model 'quik'.*quick"):
        bench.run(model="quik", device="cpu")
    with pytest.raises(ConfigError, match="at least 10 steps"):
        bench.run(steps=3, device="cpu")
    with pytest.raises(ConfigError, match=r"no part 'overheads'.*overhead"):
        bench.run(("overheads",))
