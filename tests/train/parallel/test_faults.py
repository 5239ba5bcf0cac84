"""Faults with two real processes under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import tiny_config

from slm import checkpoint
from slm.config.yaml import dump_yaml
from slm.run import Run
from slm.train.metrics import read_metrics

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "slm",
    "train",
]
FINISH = ["finish.samples=0", "finish.export=[]", "finish.report=false"]


@pytest.fixture
def recipe() -> str:
    """A sharded run that saves often, as a file."""
    run = Run(
        **tiny_config(
            train__budget={"steps": 120},
            log__checkpoint_every="7 steps",
            log__eval_every="60 steps",
            impl__parallel="fsdp",
        )
    )
    Path("recipe.yaml").write_text(dump_yaml(run.model_dump(mode="json")))
    return "recipe.yaml"


def start(recipe: str, where: str) -> subprocess.Popen[str]:
    """Two processes, in a session of their own."""
    command = [*TORCHRUN, recipe, *FINISH, f"log.dir={where}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def at_step(process: subprocess.Popen[str], where: str, step: int) -> None:
    """Wait until a run has recorded a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = read_metrics(Path(where) / "metrics.jsonl")
        if found and found[-1]["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0] if process.poll() is not None else "no progress")


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the two ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def weights(where: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.latest(Path(where))).model  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_rank_ends_the_other_and_nothing_is_lost(recipe: str) -> None:
    whole = start(recipe, "whole")
    assert whole.wait(120) == 0
    hurt = start(recipe, "hurt")
    at_step(hurt, "hurt", 30)
    victim = ranks(hurt)[1]
    os.kill(victim, signal.SIGKILL)
    out, _ = hurt.communicate(timeout=90)
    assert hurt.returncode != 0
    assert "lost the connection to another one of this run" in out
    assert "Traceback (most recent call last)" not in out.split("lost the connection")[0].split("slm:")[-1]
    again = start(recipe, "hurt")
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "Resumed from step" in out
    a, b = weights("whole"), weights("hurt")
    assert all(torch.equal(a[n], b[n]) for n in a)
    losses = [
        [(r["kind"], r["step"], r.get("loss")) for r in read_metrics(Path(d) / "metrics.jsonl")]
        for d in ("whole", "hurt")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_group_that_is_asked_to_stop_saves_at_the_step_boundary(recipe: str) -> None:
    process = start(recipe, "run")
    at_step(process, "run", 20)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    saved = checkpoint.describe(checkpoint.latest(Path("run")))[1]["step"]  # type: ignore[arg-type]
    assert f"Stopped at step {saved} of 120; everything is saved in run. The same command goes on from here." in out
    assert read_metrics(Path("run/metrics.jsonl"))[-1]["step"] == saved
