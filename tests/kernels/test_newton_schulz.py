from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, IMPLS, Bug, module, needs_triton, plant, rand

from slm_kernels import newton_schulz

home = module("newton_schulz")
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch) -> None:
    monkeypatch.setattr(home, "default_config", lambda M: home.Config(16, 4))


@needs_triton
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 16, 16), (1, 17, 40), (3, 33, 5), (2, 20, 64)], ids=str)
def test_a_symmetric_product_is_the_product(shape) -> None:
    x, add = rand(*shape), rand(shape[0], shape[1], shape[1], seed=1)
    add = add + add.mT
    for laid in (x, x.mT.contiguous().mT):
        got = home.symmetric(laid.float(), add.float().contiguous(), 0.7, -2.0)
        torch.testing.assert_close(got.double(), 0.7 * x @ x.mT - 2 * add, rtol=1e-5, atol=1e-5)
        assert torch.equal(got, got.mT)
    torch.testing.assert_close(home.symmetric(x.float()).double(), x @ x.mT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(2, 24, 40), (1, 40, 24), (3, 20, 20)], ids=str)
def test_singular_values_become_about_one(shape, impl) -> None:
    g = rand(*shape).float()
    x = newton_schulz(g, impl=impl)
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.3
    assert values.max() < 1.3
    torch.testing.assert_close(x, newton_schulz(g.double(), impl="torch").float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_each_matrix_is_on_its_own_and_inputs_stay(impl) -> None:
    g = rand(3, 8, 12).float()
    before = g.clone()
    both = newton_schulz(g, impl=impl)
    torch.testing.assert_close(both[1:2], newton_schulz(g[1:2], impl=impl))
    torch.testing.assert_close(newton_schulz(g * 1000, impl=impl), both, rtol=1e-3, atol=1e-3)
    assert torch.equal(g, before)


@pytest.mark.parametrize("impl", IMPLS)
def test_zero_and_none(impl) -> None:
    assert newton_schulz(torch.zeros(2, 4, 5, device=DEVICE), impl=impl).abs().max() == 0
    assert newton_schulz(torch.zeros(0, 4, 5, device=DEVICE), impl=impl).shape == (0, 4, 5)


def test_small_matrices_are_left_to_torch() -> None:
    assert "short side is 8" in home._why_slow(torch.empty(1, 8, 4096))
    assert home._why_slow(torch.empty(1, 1024, 4096)) == ""


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="a stack of matrices"):
        newton_schulz(torch.ones(3, 4))


BUGS = [
    Bug("_symmetric_kernel", "row < col", "row > col"),
    Bug("_symmetric_kernel", "tl.trans(total)", "total"),
    Bug("_symmetric_kernel", "f32(beta) * tl.load", "tl.load"),
    Bug("_symmetric_kernel", "total *= f32(alpha)", "pass"),
    Bug("_symmetric_kernel", "n * x_sn + i_c", "i_c"),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    plant(monkeypatch, home, bug)
    with pytest.raises(AssertionError):
        test_a_symmetric_product_is_the_product((2, 20, 64))
