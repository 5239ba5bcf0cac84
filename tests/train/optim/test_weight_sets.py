"""An optimiser that trains other weights than those to be used."""

from __future__ import annotations

import pytest
import torch
from train.optim.cases import parameters, step, tensors

from slm.train.optim import AdamW, ScheduleFree
from slm.train.optim.steps import evaluation_weights, training_weights


def copies(named: list) -> list[torch.Tensor]:
    return [p.tensor.detach().clone() for p in named]


def test_evaluations_leave_the_training_as_it_was_bit_for_bit() -> None:
    named, plain = parameters(), parameters()
    optimizers, others = ScheduleFree(lr=0.02).build(named), ScheduleFree(lr=0.02).build(plain)
    with evaluation_weights(optimizers):  # before any step there is nothing to average
        pass
    for seed in range(5):
        step(optimizers, named, tensors(seed))
        step(others, plain, tensors(seed))
        trained = copies(named)
        with evaluation_weights(optimizers):
            averages = copies(named)
        if seed:
            assert not any(torch.equal(a, t) for a, t in zip(averages, trained, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(copies(named), copies(plain), strict=True))


def test_they_come_back_after_an_error() -> None:
    named = parameters()
    optimizers = ScheduleFree().build(named)
    for seed in range(2):
        step(optimizers, named, tensors(seed))
    before = copies(named)
    with pytest.raises(KeyError), evaluation_weights(optimizers):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, copies(named), strict=True))


def test_a_step_between_is_an_error() -> None:
    named = parameters()
    optimizers = ScheduleFree().build(named)
    for seed in range(2):
        step(optimizers, named, tensors(seed))
    with evaluation_weights(optimizers), pytest.raises(RuntimeError, match="call training_weights first"):
        step(optimizers, named, tensors(3))


def test_going_in_twice_is_going_in_once() -> None:
    named = parameters()
    [optimizer] = ScheduleFree().build(named)
    for seed in range(3):
        step([optimizer], named, tensors(seed))
    trained = copies(named)
    optimizer.eval_mode()
    averages = copies(named)
    optimizer.eval_mode()
    assert all(torch.equal(a, b) for a, b in zip(averages, copies(named), strict=True))
    for _ in range(2):
        training_weights([optimizer])
        assert all(torch.equal(a, b) for a, b in zip(trained, copies(named), strict=True))


def test_others_have_one_set_only() -> None:
    named = parameters()
    optimizers = AdamW().build(named)
    step(optimizers, named, tensors(0))
    before = copies(named)
    with evaluation_weights(optimizers):
        assert all(torch.equal(a, b) for a, b in zip(before, copies(named), strict=True))


@pytest.mark.parametrize("wrong", [{"betas": (0.0, 0.9)}, {"cautious": True}])
def test_what_does_not_go_together(wrong: dict) -> None:
    with pytest.raises(ValueError, match="schedule_free needs"):
        ScheduleFree(**wrong)


def test_betas_are_below_one() -> None:
    with pytest.raises(ValueError, match="below 1"):
        AdamW(betas=(0.9, 1.0))
