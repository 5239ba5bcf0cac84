"""Faults with real processes: kills, signals, two ranks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from slm import checkpoint
from slm.config.yaml import dump_yaml
from slm.train.metrics import read_metrics

RESUMABLE = 75
FAST = ["finish.samples=0", "finish.export=[]", "finish.report=false"]


def command(recipe: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "slm", "train", recipe, *FAST, *overrides]


def recipe(tiny, **changes) -> str:
    run = tiny(**changes)
    Path("recipe.yaml").write_text(dump_yaml(run.model_dump(mode="json")))
    return "recipe.yaml"


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists():
            records = [r["step"] for r in read_metrics(run_dir / "metrics.jsonl")]
            if records and records[-1] >= step:
                return
        time.sleep(0.01)


def weights(path: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.latest(Path(path))).model


MIXTURE = {
    "data": {
        "sources": {
            "one": {"source": {"name": "synthetic", "count": 96, "length": 40}, "max_epochs": 9},
            "two": {"source": {"name": "synthetic", "count": 60, "length": 90, "seed": 1}},
        },
        "mixture": [
            {"until": "40%", "weights": {"one": 0.7, "two": 0.3}},
            {"until": "60%", "weights": {"one": 0.2, "two": 0.8}, "ramp": True},
            {"weights": {"one": 0.2, "two": 0.8}},
        ],
        "on_exhaust": "renormalise",
        "seq_len": 32,
        "heldout": 0.1,
    }
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("count", "changes"), [(3, {}), (20, MIXTURE)], ids=["one source", "a mixture"])
def test_kills_at_random_moments_change_nothing(tiny, count: int, changes: dict) -> None:
    steps = 300
    file = recipe(
        tiny, train__budget={"steps": steps}, log__checkpoint_every="7 steps", log__eval_every="50 steps", **changes
    )
    subprocess.run(command(file, "log.dir=whole"), check=True, capture_output=True)
    random.seed(time.time_ns())
    kills = sorted(random.sample(range(5, steps - 20), count))
    for at in kills:
        process = subprocess.Popen(
            command(file, "log.dir=killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_step(process, Path("killed"), at)
        time.sleep(random.random() * 0.05)  # anywhere within a step, or a save
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command(file, "log.dir=killed"), check=True, capture_output=True)
    a, b = weights("whole"), weights("killed")
    assert all(torch.equal(a[n], b[n]) for n in a), f"killed at {kills}"
    logs = [
        [(r["kind"], r["step"], r.get("loss", r.get("heldout_bpb"))) for r in read_metrics(Path(d) / "metrics.jsonl")]
        for d in ("whole", "killed")
    ]
    assert logs[0] == logs[1], f"killed at {kills}"
    assert [step for kind, step, _ in logs[1] if kind == "train"] == list(range(1, steps + 1))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_and_the_same_command_resumes(tiny, number: int) -> None:
    file = recipe(tiny, train__budget={"steps": 2000}, log__checkpoint_every=None, log__eval_every=None)
    process = subprocess.Popen(
        command(file, "log.dir=run"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(process, Path("run"), 20)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == RESUMABLE, out
    assert "The same command goes on from here" in out
    assert "Traceback" not in out
    saved = checkpoint.load(checkpoint.latest(Path("run"))).state["step"]
    assert 20 <= saved < 2000
    process = subprocess.Popen(
        command(file, "log.dir=run"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(process, Path("run"), saved + 5)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert f"Resumed from step {saved} of 2,000" in out


@pytest.mark.slow
def test_two_processes_see_the_same_batches_and_losses(tiny) -> None:
    file = recipe(tiny, train__budget={"steps": 20}, log__eval_every="10 steps", log__checkpoint_every="7 steps")
    subprocess.run(command(file, "log.dir=one"), check=True, capture_output=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [*torchrun, "-m", "slm", *command(file, "log.dir=two")[3:]]
    done = subprocess.run(two, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_metrics(Path(d) / "metrics.jsonl") for d in ("one", "two"))
    assert [(r["kind"], r["step"]) for r in one] == [(r["kind"], r["step"]) for r in two]
    for a, b in zip(one, two, strict=True):
        if a["kind"] == "train":
            assert abs(a["loss"] - b["loss"]) < 1e-5
            assert a["tokens"] == b["tokens"]
        else:
            assert abs(a["heldout_bpb"] - b["heldout_bpb"]) < 1e-5
    wa, wb = weights("one"), weights("two")
    assert max(float((wa[n] - wb[n]).abs().max()) for n in wa) < 1e-4


@pytest.mark.slow
def test_a_run_goes_on_at_another_world_size(tiny) -> None:
    """Stopped with one process, finished with two: the rows are the same ones."""
    file = recipe(tiny, train__budget={"steps": 20}, log__checkpoint_every="5 steps")
    subprocess.run(command(file, "log.dir=one"), check=True, capture_output=True)
    import shutil

    shutil.copytree("one", "two")
    for step in ("step-00000020",):
        shutil.rmtree(Path("two/checkpoints") / step)
    (Path("two") / "summary.json").unlink()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, "-m", "slm", *command(file, "log.dir=two")[3:]], check=True, capture_output=True)
    one, two = (read_metrics(Path(d) / "metrics.jsonl") for d in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        if a["kind"] == "train":
            assert abs(a["loss"] - b["loss"]) < 1e-5
