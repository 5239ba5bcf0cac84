from __future__ import annotations

import pytest
import torch

from slm.model.classes import classify
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.muon import MuonOptimizer, orthogonalise
from slm.train.optim import AdamW, Muon, NamedParameter, set_rate


def parameters() -> list[NamedParameter]:
    model = Decoder(Model(dim=32, layers=2, vocab=40, norm="layernorm", embedding="untied")).init_weights(0)
    return [NamedParameter(*found) for found in classify(model)]


@pytest.mark.parametrize("part", [AdamW(), Muon()])
def test_every_parameter_once_and_only_matrices_and_head_decay(part) -> None:
    named = parameters()
    groups = [g for o in part.build(named) for g in o.param_groups]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p.tensor) for p in named)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p.tensor) for p in named if p.tensor_class in ("matrix", "head")}


def test_an_unknown_class_is_an_error() -> None:
    stray = NamedParameter("x", "gate", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(KeyError):
        AdamW().build([stray])


def test_adamw_is_adamw() -> None:
    """Three steps against the equations of the paper."""
    p = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    [optimizer] = AdamW(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1).build([NamedParameter("w", "matrix", p)])
    theta, m, v = p.detach().double().clone(), 0.0, 0.0
    for t in range(1, 4):
        grad = torch.tensor([[0.3 * t, -1.0]])
        p.grad = grad.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad.double(), 0.95 * v + 0.05 * grad.double() ** 2
        theta = theta * (1 - 0.1 * 0.1) - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        torch.testing.assert_close(p.detach().double(), theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    u, _, vt = torch.linalg.svd(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    stack = u * torch.logspace(-1.5, 0, min(shape)) @ vt  # a condition number of 30, as momenta have
    out = orthogonalise(stack)
    values = torch.linalg.svdvals(out.float())
    assert values.min() > 0.5
    assert values.max() < 1.4
    polar = u @ vt
    assert (out * polar).sum() / (out.norm() * polar.norm()) > 0.97
    torch.testing.assert_close(out, torch.stack([orthogonalise(m[None])[0] for m in stack]), atol=2e-2, rtol=0)


@pytest.mark.parametrize("part", [AdamW(lr=0.1), Muon()])
def test_found_inf_makes_a_step_change_nothing(part) -> None:
    named = parameters()
    optimizers = part.build(named)

    def step(grad: float, bad: float) -> None:
        for p in named:
            p.tensor.grad = torch.full_like(p.tensor, grad)
        for o in optimizers:
            o.found_inf, o.grad_scale = torch.tensor(bad), None
            o.step()

    step(0.1, 0.0)
    before = [p.tensor.detach().clone() for p in named]
    states = [{k: v.clone() for k, v in s.items()} for o in optimizers for s in o.state.values()]
    step(float("nan"), 1.0)
    assert all(torch.equal(p.tensor, b) for p, b in zip(named, before, strict=True))
    after = [s for o in optimizers for s in o.state.values()]
    assert all(torch.equal(s[k], a[k]) for s, a in zip(states, after, strict=True) for k in s)
    step(0.1, 0.0)
    assert not torch.equal(named[0].tensor, before[0])


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        MuonOptimizer([torch.nn.Parameter(torch.ones(3))])


def test_set_rate_scales_every_peak() -> None:
    optimizers = Muon().build(parameters())
    set_rate(optimizers, 0.5)
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.002}
