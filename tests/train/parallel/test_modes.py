"""Real processes that share a model: the same losses, whatever is cut among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_config

from slm.config.errors import ConfigError
from slm.train.metrics import read_metrics
from slm.train.parallel import FullyShard, HybridShard, parallel

WORKER = Path(__file__).with_name("worker.py")
STEPS = 30

ATTENTION = {"name": "gqa", "heads": 4, "kv_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"embedding": "untied"},
    "shared layers": {"layers": 4, "layout": {"name": "repeat", "repeat": 2}},
    "shared ffn": {"layers": 3, "layout": "shared_ffn"},
    "mla": {"attention": {"name": "mla", "heads": 4}},
    "value residual": {"attention": {**ATTENTION, "value_mix": "first"}},
    "further depth": {"aux": "mtp"},
    "moe": {"ffn": {"name": "moe", "hidden": 32, "experts": 4, "top_k": 2, "balance": 0.0}},
}
MODES: dict[str, Any] = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "fsdp, kept whole": {"name": "fsdp", "reshard": False},
    "hsdp in twos": {"name": "hsdp", "group": 2},
    "hsdp in ones": {"name": "hsdp", "group": 1},
}


def case(name: str, *, model: dict[str, Any], stop: int | None = None, **changes: Any) -> dict[str, Any]:
    """A run as the worker wants it."""
    config = tiny_config(train__budget={"steps": STEPS}, log__dir=name, log__eval_every="15 steps", **changes)
    config["model"] |= model
    return {"run": config, "stop": stop}


def launch(processes: int, cases: list[dict[str, Any]]) -> None:
    """Run cases in so many processes."""
    Path("cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISTRIBUTED_DEBUG": "OFF"}
    done = subprocess.run([*command, str(WORKER), "cases.json"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def figures(name: str) -> list[tuple[str, int, float]]:
    return [
        (r["kind"], r["step"], r["loss"] if r["kind"] == "train" else r["heldout_bpb"])
        for r in read_metrics(Path(name) / "metrics.jsonl")
    ]


def assert_close(a: str, b: str, tolerance: float = 1e-5) -> None:
    one, other = figures(a), figures(b)
    assert [r[:2] for r in one] == [r[:2] for r in other]
    assert max(abs(x[2] - y[2]) for x, y in zip(one, other, strict=True)) < tolerance, b


def norms(name: str) -> list[dict[str, float]]:
    return [
        {**r["grad_norms"], "all": r["grad_norm"]}
        for r in read_metrics(Path(name) / "metrics.jsonl")
        if r["kind"] == "train"
    ]


@pytest.mark.slow
def test_every_mode_gives_the_losses_of_one_process() -> None:
    """For models with shared tensors and blocks, and with outputs that reach past a block; held-out figures and norms, too."""
    launch(1, [case(f"{m}, alone", model=MODELS[m]) for m in MODELS])
    cases = [case(f"{m}, {mode}", model=MODELS[m], impl__parallel=MODES[mode]) for m in MODELS for mode in MODES]
    launch(2, cases)
    for m in MODELS:
        for mode in MODES:
            assert_close(f"{m}, alone", f"{m}, {mode}")
            for a, b in zip(norms(f"{m}, alone"), norms(f"{m}, {mode}"), strict=True):
                assert a == pytest.approx(b, rel=1e-3), (m, mode)
            final = torch.load(f"{m}, {mode}/final.pt", weights_only=True)
            whole = torch.load(f"{m}, alone/final.pt", weights_only=True)
            assert all(torch.allclose(final[n], whole[n], atol=1e-4) for n in whole), (m, mode)


EVERYTHING: dict[str, Any] = {
    "train__optim": {"name": "muon", "lr": 3e-3},
    "train__ema": {"decay": 0.8},
    "train__spikes": {"sigmas": 4, "after": 4},
    "impl__micro_batch": 1,
}


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_another_mode() -> None:
    """Two, one, two processes, sharded, whole, replicated: within 1e-6; bit for bit where nothing changes."""
    fsdp = {"impl__parallel": "fsdp", **EVERYTHING}
    whole = case("whole", model={}, **fsdp)
    parts = [case("parts", model={}, stop=stop, **fsdp) for stop in (6, 13, None)]
    launch(2, [whole, *parts, case("moved", model={}, stop=8, **fsdp)])
    assert figures("whole") == figures("parts")
    one, other = (torch.load(f"{d}/final.pt", weights_only=True) for d in ("whole", "parts"))
    assert all(torch.equal(one[n], other[n]) for n in one)
    launch(1, [case("moved", model={}, stop=16, **EVERYTHING)])
    launch(2, [case("moved", model={}, **EVERYTHING, impl__parallel={"name": "hsdp", "group": 1})])
    assert_close("whole", "moved", 1e-6)


def test_groups_must_fit_and_shards_are_counted() -> None:
    assert (FullyShard().shards(8), HybridShard(group=4).shards(8), parallel.parts["ddp"]().shards(8)) == (8, 4, 1)
    with pytest.raises(ConfigError, match="8 processes can't be divided into groups of 3"):
        HybridShard(group=3).shards(8)
