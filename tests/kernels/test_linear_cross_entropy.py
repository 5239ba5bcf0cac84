from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slm_kernels import linear_cross_entropy
from slm_kernels.linear_cross_entropy import reference


def problem(rows: int = 37, dim: int = 16, vocab: int = 101, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=g, dtype=torch.float64).requires_grad_()
    w = torch.randn(vocab, dim, generator=g, dtype=torch.float64).requires_grad_()
    y = torch.randint(vocab, (rows,), generator=g)
    y[::5] = -100
    y[1], y[2] = 0, vocab - 1
    return x, w, y


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk_bytes", [1, 20 * 4 * 101, 1 << 30])
def test_value_and_gradients_match_the_reference(z_loss: float, chunk_bytes: int) -> None:
    x, w, y = problem()
    ours, nll = linear_cross_entropy(x.float(), w.float(), y, z_loss=z_loss, chunk_bytes=chunk_bytes)
    wanted, wanted_nll = reference(x, w, y, z_loss=z_loss)
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(nll.double(), wanted_nll.double(), rtol=1e-5, atol=1e-4)
    gx, gw = torch.autograd.grad(ours * 0.37, [x, w])
    wx, ww = torch.autograd.grad(wanted * 0.37, [x, w])
    torch.testing.assert_close(gx, wx, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gw, ww, rtol=1e-4, atol=1e-5)


def test_all_ignored_is_zero_with_zero_gradients() -> None:
    x, w, y = problem()
    loss, _ = linear_cross_entropy(x.float(), w.float(), torch.full_like(y, -100))
    assert loss == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(loss, [x, w]))


def test_extreme_logits_stay_finite() -> None:
    x, w, y = problem()
    loss, _ = linear_cross_entropy((x * 1e4).float(), w.float(), y)
    assert torch.isfinite(loss)


def test_inputs_are_not_modified_and_no_grad_agrees() -> None:
    x, w, y = problem()
    before = [t.clone() for t in (x, w, y)]
    a, _ = linear_cross_entropy(x.float(), w.float(), y)
    with torch.no_grad():
        b, _ = linear_cross_entropy(x.float(), w.float(), y)
    assert a == b
    assert all(torch.equal(t, s) for t, s in zip((x, w, y), before, strict=True))


def test_without_gradients_only_the_logits_are_multiplied() -> None:
    """A third of the work: evaluation has parameters that want gradients, but doesn't want them itself."""
    x, w, y = problem()
    for grad, products in ((True, 3), (False, 1)):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            linear_cross_entropy(x, w, y)
        assert counter.get_total_flops() == products * 2 * 37 * 16 * 101


def test_autocast_is_as_exact_as_torchs_own_bf16() -> None:
    x, w, y = problem(rows=256, dim=64)
    exact = reference(x, w, y)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = linear_cross_entropy(x.float(), w.float(), y)
        theirs, _ = reference(x.float(), w.float(), y)
    assert abs(ours - exact) <= 2 * abs(theirs - exact) + 1e-3 * abs(exact)
    assert torch.autograd.grad(ours, w)[0].dtype == torch.float64


HEADS = {
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.3},
    "softcap": {"softcap": 2.0},
    "padding": {"valid": 90},
    "all": {"bias": True, "logit_scale": 0.7, "softcap": 3.0, "valid": 77},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
def test_heads_match_the_reference_in_value_and_every_gradient(name: str, chunk_bytes: int) -> None:
    x, w, y = problem()
    options = dict(HEADS[name])
    b = (
        torch.randn(101, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
        if options.pop("bias", False)
        else None
    )
    y[y >= options.get("valid", 101)] = 3
    ours, _ = linear_cross_entropy(x, w, y, z_loss=1e-2, bias=b, chunk_bytes=chunk_bytes, **options)
    wanted, _ = reference(x, w, y, z_loss=1e-2, bias=b, **options)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    inputs = [x, w] if b is None else [x, w, b]
    for got, expected in zip(
        torch.autograd.grad(ours * 0.37, inputs), torch.autograd.grad(wanted * 0.37, inputs), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_softcap_tames_extreme_logits() -> None:
    x, w, y = problem()
    loss, _ = linear_cross_entropy((x * 1e4).float(), w.float(), y, softcap=5.0)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [x, w]))
