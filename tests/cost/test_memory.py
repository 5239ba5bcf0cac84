"""The arithmetic of a plan of memory."""

from __future__ import annotations

from dataclasses import replace

from slm.cost.device import MEMORY, PEAK_BF16, memory_bytes, peak_flops
from slm.cost.memory import FRAMEWORK, StepMemory, training_bytes

STEP = StepMemory(params=100, optimizer=800, activations=5000, gradients=40, step_workspace=300, accumulates=False)
PARTS = ("weights", "optimizer", "teacher", "gradients", "exchange", "activations", "checkpoint_copy", "framework")


def test_parts_are_those_of_the_higher_moment() -> None:
    back = training_bytes(STEP, device="cpu")
    assert (back["peak"], back["gradients"], back["activations"]) == ("backward", 40, 5000)
    step = training_bytes(replace(STEP, activations=100), device="cpu")
    assert (step["peak"], step["gradients"], step["activations"]) == ("step", 400, 300)
    for plan in (back, step):
        assert plan["per_rank_bytes"] == sum(int(plan[part]) for part in PARTS)


def test_gradients_of_earlier_micro_batches_are_there() -> None:
    assert training_bytes(replace(STEP, accumulates=True), device="cpu")["gradients"] == 400


def test_shards_divide_what_is_of_the_model_and_leave_activations() -> None:
    plan = training_bytes(replace(STEP, accumulates=True), device="cuda", shards=3)
    assert (plan["weights"], plan["optimizer"], plan["gradients"]) == (134, 267, 400)  # they are averaged once a step
    assert (plan["activations"], plan["framework"]) == (5000, FRAMEWORK["cuda"])
    assert training_bytes(STEP, device="cuda", shards=3)["gradients"] == 14


def test_what_is_exchanged_is_there_on_the_way_back_only() -> None:
    step = replace(STEP, exchange=600)
    assert training_bytes(step, device="cpu")["exchange"] == 600
    step = replace(step, activations=100, step_workspace=9000)
    assert training_bytes(step, device="cpu")["exchange"] == 0
    assert training_bytes(replace(step, exchange_stays=True), device="cpu")["exchange"] == 600


def test_the_copy_that_checkpoints_are_written_from_is_the_hosts() -> None:
    copied = replace(STEP, copied=1200)
    here, there = training_bytes(copied, device="cpu", shards=2), training_bytes(copied, device="cuda", shards=2)
    assert (here["checkpoint_copy"], here["host_bytes"]) == (200 + 400, 0)
    assert (there["checkpoint_copy"], there["host_bytes"]) == (0, 200 + 400)
    assert here["per_rank_bytes"] == sum(int(here[part]) for part in PARTS)
    assert there["per_rank_bytes"] == training_bytes(STEP, device="cuda", shards=2)["per_rank_bytes"]


def test_every_device_with_a_peak_has_a_memory() -> None:
    for name in PEAK_BF16:
        assert peak_flops(name)
        assert memory_bytes(name) == next(v for k, v in MEMORY.items() if k in name)
    assert memory_bytes("NVIDIA A100-SXM4-40GB") == 40_000_000_000
    assert memory_bytes("NVIDIA A100-SXM4-80GB") == 80_000_000_000
    assert memory_bytes(None) is None
    assert memory_bytes("abacus") is None
