from __future__ import annotations

import pytest
import torch
from kernel_checks import CAN_TRITON, DEVICE, IMPLS, LOW, Bug, errors, module, needs_triton, plant, rand

from slm_kernels import Head, linear_cross_entropy, linear_lse

home = module("linear_lse")
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch) -> None:
    if CAN_TRITON and DEVICE == "cpu":
        monkeypatch.setattr(home, "DEFAULT", home.Config(16, 4, 2))
        monkeypatch.setattr(home, "DEPTH", 16)


PLAIN = Head()
HEADS = {"plain": Head(), "cap": Head(softcap=2.0), "all": Head(scale=0.6, softcap=3.0, valid=41, ignore_index=3)}


def compare(
    N: int = 21, D: int = 20, V: int = 50, head: Head = PLAIN, dtype=torch.float32, impl: str = "triton"
) -> None:
    x, w, b = rand(N, D), rand(V, D, seed=1), rand(V, seed=2)
    y = torch.randint(head.valid or V, (N,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x, w, b = x.to(dtype), w.to(dtype), b.to(dtype)
    exact = home.in_chunks(x.double(), w.double(), y, head, b.double())
    plain = home.in_chunks(x, w, y, head, b)
    found = linear_lse(x, w, y, head, bias=b, impl=impl)
    for name, ours, theirs, wanted in zip(found._fields, found, plain, exact, strict=True):
        (l2, _), (l2_torch, _) = errors(ours, wanted), errors(theirs, wanted)
        assert l2 <= 2 * l2_torch + 1e-6, f"{name}: error {l2} torch {l2_torch}"


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("head", HEADS)
def test_matches_fp64(head, dtype, impl) -> None:
    compare(head=HEADS[head], dtype=dtype, impl=impl)


@needs_triton
@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 16, 16), (17, 33, 49), (3, 40, 17), (40, 8, 100)], ids=str)
def test_shapes(shape) -> None:
    compare(*shape)


def test_chunks_make_no_difference(monkeypatch) -> None:
    x, w, y = rand(40, 6), rand(30, 6, seed=1), torch.arange(40) % 30
    one = home.in_chunks(x, w, y.to(DEVICE), Head(), None)
    monkeypatch.setattr(home, "CHUNK_BYTES", 1)
    for a, b in zip(one, home.in_chunks(x, w, y.to(DEVICE), Head(), None), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", IMPLS)
def test_without_targets_and_without_rows(impl) -> None:
    found = linear_lse(rand(4, 3).float(), rand(7, 3).float(), impl=impl)
    assert found.target.abs().max() == 0
    assert linear_lse(rand(0, 3).float(), rand(7, 3).float(), impl=impl).lse.shape == (0,)
    assert not linear_lse(rand(4, 3).float().requires_grad_(), rand(7, 3).float(), impl=impl).lse.requires_grad


@needs_triton
def test_huge_logits() -> None:
    x, w = rand(5, 4).float() * 1e3, rand(30, 4).float() * 10
    for a, b in zip(linear_lse(x, w, impl="triton"), linear_lse(x, w, impl="torch"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-2)


@needs_triton
def test_the_loss_without_gradients_uses_it() -> None:
    x, w = rand(23, 12).float().requires_grad_(), rand(50, 12, seed=1).float().requires_grad_()
    y = torch.randint(41, (23,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    y[::4] = -100
    options = {"z_loss": 0.01, "label_smoothing": 0.1, "softcap": 3.0, "valid": 41, "logit_scale": 0.5}
    for reduction in ("sum", "mean"):
        with torch.no_grad():
            ours = linear_cross_entropy(x, w, y, reduction=reduction, aux=True, impl="triton", **options)
        theirs = linear_cross_entropy(x, w, y, reduction=reduction, aux=True, impl="torch", **options)
        for a, b in zip(
            (*ours[:2], ours[2].lse, ours[2].correct), (*theirs[:2], theirs[2].lse, theirs[2].correct), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


BUGS = [
    Bug("_kernel", "total * tl.exp(top - higher)", "total"),
    Bug("_kernel", "i_v < valid", "i_v < V"),
    Bug("_kernel", "i_v[None, :] == y[:, None]", "o_v[None, :] == y[:, None]"),
    Bug("_kernel", "(part * per_range + tile) * COLS", "tile * COLS"),
    Bug("_kernel", "2 * z / cap", "z / cap"),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    compare(21, 20, 120, HEADS["all"])
    plant(monkeypatch, home, bug)
    with pytest.raises(AssertionError):
        compare(21, 20, 120, HEADS["all"])
