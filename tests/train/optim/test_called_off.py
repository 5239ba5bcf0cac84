"""A step that the device calls off changes nothing."""

from __future__ import annotations

import pytest
import torch
from train.optim.cases import PARTS, parameters, state_of, step, tensors

from slm.train.optim import SOAP, OptimPart

each_part = pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
BAD = {
    "nan": lambda t: torch.full_like(t, float("nan")),
    "inf": lambda t: torch.full_like(t, float("inf")),
    "its square is not finite": lambda t: torch.full_like(t, 1e30),
    "an outlier": lambda t: 1000 * t,
    "one nan": lambda t: torch.where(torch.arange(t.numel()).view_as(t) == 0, float("nan"), t),
}


def bad(kind: str) -> dict[str, torch.Tensor]:
    return {name: BAD[kind](t) for name, t in tensors(5).items()}


@each_part
@pytest.mark.parametrize("kind", BAD)
def test_weights_and_state_stay_bit_for_bit(part: OptimPart, kind: str) -> None:
    named = parameters()
    optimizers = part.build(named)
    for seed in range(2):
        step(optimizers, named, tensors(seed), bad=0.0)
    weights, state = [p.tensor.detach().clone() for p in named], state_of(optimizers)
    for _ in range(2):
        step(optimizers, named, bad(kind), bad=1.0)
    assert all(torch.equal(p.tensor, w) for p, w in zip(named, weights, strict=True))
    for before, after in zip(state, state_of(optimizers), strict=True):
        assert before.keys() == after.keys()
        for key in before.keys() - {"calls"}:  # SOAP's clock of bases is the host's
            assert torch.equal(before[key], after[key]), key


@each_part
def test_also_the_first_step(part: OptimPart) -> None:
    """Then the run goes on as if it hadn't been: what the first gradient sets up (SOAP's basis) apart."""
    named, fresh = parameters(), parameters()
    optimizers, others = part.build(named), part.build(fresh)
    step(optimizers, named, bad("inf"), bad=1.0)
    assert all(torch.equal(p.tensor, q.tensor) for p, q in zip(named, fresh, strict=True))
    for seed in range(3):
        step(optimizers, named, tensors(seed), bad=0.0)
        step(others, fresh, tensors(seed), bad=0.0)
    assert all(torch.isfinite(p.tensor).all() for p in named)
    if not isinstance(part, SOAP):
        assert all(torch.equal(p.tensor, q.tensor) for p, q in zip(named, fresh, strict=True))


@each_part
def test_steps_around_it_are_those_of_a_run_without_it(part: OptimPart) -> None:
    if isinstance(part, SOAP):
        part = part.with_(frequency=100)
    named, plain = parameters(), parameters()
    optimizers, others = part.build(named), part.build(plain)
    for seed in range(4):
        step(optimizers, named, tensors(seed), bad=0.0)
        step(others, plain, tensors(seed), bad=0.0)
        step(optimizers, named, bad("one nan"), bad=1.0)
    assert all(torch.equal(p.tensor, q.tensor) for p, q in zip(named, plain, strict=True))


def test_a_basis_that_is_due_in_a_step_that_is_called_off_is_thrown_away() -> None:
    named = [p for p in parameters() if p.tensor_class == "matrix"]
    optimizers = SOAP(frequency=2).build(named)
    for seed in range(2):
        step(optimizers, named, tensors(seed), bad=0.0)
    bases = [s["basis_left"].clone() for s in optimizers[0].state.values()]
    step(optimizers, named, bad("nan"), bad=1.0)  # the third call: a new basis is due
    assert all(torch.equal(b, s["basis_left"]) for b, s in zip(bases, optimizers[0].state.values(), strict=True))
    for seed in range(2):
        step(optimizers, named, tensors(seed), bad=0.0)
    assert not any(
        torch.equal(b, s["basis_left"]) for b, s in zip(bases[:3], list(optimizers[0].state.values())[:3], strict=True)
    )
