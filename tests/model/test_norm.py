"""RMS norm on a CPU is written by hand: it is torch's, and its gradients are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from slm.model.norm import RMSNorm, RMSNormPart, _RMSNormOnCPU


def made(width: int = 24, heads: int | None = None, **fields: str) -> RMSNorm:
    norm = RMSNormPart(eps=1e-5, **fields).build(width, heads)  # type: ignore[arg-type]
    assert isinstance(norm, RMSNorm)
    for p in norm.parameters():
        torch.nn.init.uniform_(p, 0.5, 1.5)
    return norm


@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_are_those_of_finite_differences(weighted: bool) -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64, requires_grad=True) if weighted else None
    assert gradcheck(lambda x: _RMSNormOnCPU.apply(x, weight, 1e-5), (x,))
    if weight is not None:
        assert gradcheck(lambda weight: _RMSNormOnCPU.apply(x.detach(), weight, 1e-5), (weight,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gain", ["plain", "one_plus", "none"])
def test_it_is_torchs(gain: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = made(gain=gain)
    x = (10 * torch.randn(5, 7, 24)).to(dtype).requires_grad_()
    dy = torch.randn(7, 5, 24).mT.mT.transpose(0, 1).to(dtype)  # not contiguous
    weight = None if norm.weight is None else (norm.weight + (gain == "one_plus")).detach().requires_grad_()
    ours, theirs = norm(x), F.rms_norm(x.float(), (24,), weight, 1e-5).to(dtype)
    assert ours.dtype == dtype
    exact = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-6, "rtol": 1e-2}
    torch.testing.assert_close(ours, theirs, **exact)
    wanted = torch.autograd.grad(theirs, [x, *([] if weight is None else [weight])], dy)
    found = torch.autograd.grad(ours, [x, *norm.parameters()], dy)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=exact["rtol"])


def test_gradients_keep_their_precision_under_autocast() -> None:
    norm, x = made(), torch.randn(64, 24, requires_grad=True)
    wanted = torch.autograd.grad(norm(x).square().sum(), [x, *norm.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(norm(x).square().sum(), [x, *norm.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_what_needs_no_gradient_gets_none_and_empty_rows_pass() -> None:
    norm, x = made(), torch.randn(4, 24, requires_grad=True)
    norm.weight.requires_grad_(False)  # type: ignore[union-attr]
    norm(x).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None  # type: ignore[union-attr]
    norm.weight.requires_grad_(True)  # type: ignore[union-attr]
    norm(x.detach()).sum().backward()
    assert norm.weight.grad is not None  # type: ignore[union-attr]
    empty = torch.empty(0, 24, requires_grad=True)
    norm(empty).sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == (0, 24)


def test_gains_of_heads_follow_the_norm() -> None:
    norm, x = made(8, heads=3), torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), None, 1e-5) * norm.weight)
