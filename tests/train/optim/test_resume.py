"""Through a checkpoint and back, with the functions that the trainer calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm import checkpoint
from slm.data.corpus import Corpus
from slm.data.loader import Loader
from slm.data.plan.of_corpus import plan_of
from slm.data.prepare import prepare
from slm.run import Run
from slm.train.course import Course
from slm.train.optim import optim
from slm.train.optim.steps import evaluation_weights
from slm.train.parallel.world import World
from slm.train.state import TrainState, build, resume, save

ALONE = World(0, 1, torch.device("cpu"))
SETTINGS: dict[str, dict[str, Any]] = {
    "soap": {"frequency": 3},
    "adafactor": {"momentum": 0.9},
    "adamw": {"cautious": True},
}
each_optimiser = pytest.mark.parametrize("name", list(optim.parts))


def saver() -> checkpoint.Saver:
    return checkpoint.Saver(Path("run"), asynchronous=False)


def begin(tiny: Callable[..., Run], name: str) -> tuple[Run, Corpus, TrainState]:
    run = tiny(train__optim={"name": name, **SETTINGS.get(name, {})})
    store = prepare(run.data, run.tokenizer, run.impl.data_dir)
    loader = Loader(plan_of(store, run.data), run.train.batch_tokens // run.data.seq_len, rank=0, world=1)
    return run, store, build(run, store, loader, Course.of(run, run.costs()), ALONE)


def go(state: TrainState, steps: int, bad_at: int = -1) -> None:
    for _ in range(steps):
        batch = next(state.loader)
        sums = state.model.training_loss(
            batch.tokens_BT, batch.targets_BT, positions_BT=batch.positions_BT, docs_BT=batch.docs_BT
        )
        (sums.loss / sums.count).backward()
        for optimizer in state.optimizers:
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(float(state.step == bad_at)), None  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.step += 1


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    """Weights and optimiser state by name."""
    names = {p: n for n, p in state.model.named_parameters()}
    found = {n: p.detach().clone() for n, p in state.model.named_parameters()}
    for optimizer in state.optimizers:
        found |= {f"{names[p]}/{k}": v.clone() for p, entries in optimizer.state.items() for k, v in entries.items()}
    return found


def equal(a: TrainState, b: TrainState) -> bool:
    one, other = everything(a), everything(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@each_optimiser
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tiny: Callable[..., Run], name: str, stop: int) -> None:
    """Also when the step before the save was called off, and at any point of SOAP's cycle."""
    run, store, whole = begin(tiny, name)
    go(whole, 8, bad_at=3)
    _, _, first = begin(tiny, name)
    go(first, stop, bad_at=3)
    save(first, run, store, saver(), 0, ALONE)
    _, _, second = begin(tiny, name)
    resume(second, checkpoint.latest(Path("run")), ALONE)
    assert second.step == stop
    go(second, 8 - stop, bad_at=3)
    assert equal(whole, second)


def test_a_checkpoint_of_schedule_free_holds_the_averages_and_resumes_the_training(tiny: Callable[..., Run]) -> None:
    """Who reads the weights gets the averages; a resume goes on bit for bit."""
    run, store, whole = begin(tiny, "schedule_free")
    go(whole, 4)
    trained = [p.detach().clone() for p in whole.model.parameters()]
    with evaluation_weights(whole.optimizers):
        averages = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    save(whole, run, store, saver(), 0, ALONE)
    saved = checkpoint.load(checkpoint.latest(Path("run")))  # type: ignore[arg-type]
    assert all(torch.equal(saved.model[n], averages[n]) for n in averages)
    _, _, second = begin(tiny, "schedule_free")
    resume(second, checkpoint.latest(Path("run")), ALONE)
    assert all(torch.equal(p, q) for p, q in zip(second.model.parameters(), trained, strict=True))
    go(whole, 3)
    go(second, 3)
    assert equal(whole, second)


@each_optimiser
def test_all_state_is_tensors_with_names_that_a_checkpoint_can_hold(tiny: Callable[..., Run], name: str) -> None:
    _, _, state = begin(tiny, name)
    go(state, 2)
    for optimizer in state.optimizers:
        for entries in optimizer.state.values():
            assert all(isinstance(value, torch.Tensor) and "/" not in key for key, value in entries.items())
            assert len({value.data_ptr() for value in entries.values()}) == len(entries), "shared memory"
