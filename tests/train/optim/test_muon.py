"""Orthogonalisation, and what counts as one matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from train.optim.cases import parameters, step, tensors

from slm.config.errors import ConfigError
from slm.train.optim import Muon, NamedParameter
from slm.train.optim.steps import muon as muon_module
from slm.train.optim.steps.muon import MuonOptimizer
from slm.train.optim.steps.newton_schulz import CUSHION, SMALLEST, minimax, orthogonalise, polynomials


def random_stack(shape: tuple[int, int], smallest: float = -1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices with singular values from 10^smallest to 1, and the orthogonal ones next to them."""
    u, _, vt = torch.linalg.svd(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    return u * torch.logspace(smallest, 0, min(shape)) @ vt, u @ vt


@pytest.mark.parametrize("kind", ["jordan", "polar_express"])
@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int], kind: str) -> None:
    stack, polar = random_stack(shape)  # a condition number of 30, as momenta have
    out = orthogonalise(stack, kind)
    values = torch.linalg.svdvals(out.float())
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert (out * polar).sum() / (out.norm() * polar.norm()) > 0.97
    torch.testing.assert_close(out, torch.stack([orthogonalise(m[None], kind)[0] for m in stack]), atol=2e-2, rtol=0)


def test_polar_express_is_closer_than_jordan_and_both_beat_the_classic() -> None:
    stack, polar = random_stack((48, 32), smallest=-2.5)
    error = {
        k: float((orthogonalise(stack.double(), k, 6) - polar).norm()) for k in ("jordan", "polar_express", "classic")
    }  # type: ignore[arg-type]
    assert error["polar_express"] < 0.1 * error["jordan"]
    assert error["jordan"] < error["classic"]


def test_classic_and_polar_express_converge() -> None:
    stack, polar = random_stack((24, 32))
    for kind, steps in (("classic", 20), ("polar_express", 9)):
        torch.testing.assert_close(orthogonalise(stack.double(), kind, steps), polar.double(), atol=1e-5, rtol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(CUSHION, 1.0), (0.05, 1.9), (0.4, 1.6), (0.9, 1.1)])
def test_minimax_polynomials_equioscillate(low: float, high: float) -> None:
    """Four extremes of equal size and alternating sign: by Chebyshev no odd quintic is nearer to 1."""
    a, b, c = minimax(low, high)
    x = np.linspace(low, high, 200_001)
    error = a * x + b * x**3 + c * x**5 - 1
    worst = np.abs(error).max()
    signs = np.sign(error[np.abs(error) > worst * (1 - 1e-6)])
    assert (np.flatnonzero(np.diff(signs)).size, signs[0], signs[-1]) == (3, -1, 1)


def test_polar_express_has_the_papers_numbers() -> None:
    """The first and the last of table 1, before and after the safety factor."""
    first, *_, last = polynomials("polar_express", 5)
    np.testing.assert_allclose(
        first, (8.28721201814563 / 1.01, -23.595886519098837 / 1.01**3, 17.300387312530933 / 1.01**5)
    )
    np.testing.assert_allclose(last, (2.300652019954817, -1.6689039845747493, 0.4188073119525673), rtol=1e-8)
    assert SMALLEST < CUSHION


def one(part: Muon, shape: tuple[int, ...], grad: torch.Tensor) -> torch.Tensor:
    """What a first step at rate 1 without decay takes away."""
    p = NamedParameter("w", "matrix", torch.nn.Parameter(torch.zeros(shape)))
    optimizers = part.with_(lr=1.0, weight_decay=0.0).build([p])
    step(optimizers, [p], {"w": grad})
    return -p.tensor.detach()


def test_scales() -> None:
    grad = random_stack((48, 16))[0][0]
    exact = {"polynomial": "classic", "ns_steps": 20}
    assert one(Muon(**exact), (48, 16), grad).square().mean().sqrt() == pytest.approx(0.2, rel=1e-2)
    values = torch.linalg.svdvals(one(Muon(scale="aspect", **exact), (48, 16), grad))
    torch.testing.assert_close(values, torch.full((16,), 3**0.5), rtol=1e-2, atol=0)
    wide = torch.linalg.svdvals(one(Muon(scale="aspect", **exact), (16, 48), grad.mT.contiguous()))
    torch.testing.assert_close(wide, torch.ones(16), rtol=1e-2, atol=0)


def test_blocks_are_matrices_of_their_own() -> None:
    grad = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    whole, heads = Muon(), Muon(rules=[{"match": "w", "blocks": 3}])
    by_head = torch.cat([one(whole, (4, 8), part) for part in grad.split(4)])
    torch.testing.assert_close(one(heads, (12, 8), grad), by_head, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one(whole, (12, 8), grad), by_head, atol=1e-2)
    with pytest.raises(ConfigError, match="blocks=5 doesn't divide the 12 rows of 'w'"):
        one(Muon(rules=[{"match": "w", "blocks": 5}]), (12, 8), grad)


def test_a_stack_of_experts_is_as_many_matrices() -> None:
    grad = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(1))
    each = torch.stack([one(Muon(), (6, 10), g) for g in grad])
    torch.testing.assert_close(one(Muon(), (3, 6, 10), grad), each, atol=1e-5, rtol=1e-4)


def test_stacks_of_bounded_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for most in (1 << 27, 100):
        monkeypatch.setattr(muon_module, "STACK", most)
        named = parameters()
        optimizers = Muon().build(named)
        for seed in range(3):
            step(optimizers, named, tensors(seed))
        results.append(torch.cat([p.tensor.detach().flatten() for p in named]))
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        MuonOptimizer([torch.nn.Parameter(torch.ones(3))])


def test_a_model_of_matrices_alone_needs_no_adamw() -> None:
    assert len(Muon().build([p for p in parameters() if p.tensor_class == "matrix"])) == 1
    assert len(Muon().build([p for p in parameters() if p.tensor_class != "matrix"])) == 1
