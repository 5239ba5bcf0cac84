from __future__ import annotations

import pytest
import torch
from kernel_checks import (
    DEVICE,
    IMPLS,
    LOW,
    Bug,
    Case,
    check,
    check_all_bugs_are_caught,
    module,
    needs_triton,
    rand,
)

from slm_kernels import short_conv

reference = module("short_conv").reference
pytestmark = pytest.mark.usefixtures("poisoned")


def case(
    B: int = 2,
    T: int = 19,
    C: int = 5,
    K: int = 4,
    *,
    bias: bool = True,
    docs: bool = True,
    residual: bool = True,
    impl: str = "triton",
) -> Case:
    doc = None
    if docs:
        doc = torch.stack([torch.arange(T) // (3 + 4 * b) for b in range(B)]).to(DEVICE)

    def ours(x, w, b):
        return short_conv(x, w, b, doc, residual=residual, impl=impl)

    inputs = [rand(B, T, C), rand(C, K, seed=1), rand(C, seed=2) if bias else None]
    return Case(ours, lambda x, w, b: reference(x, w, b, doc, residual), inputs, "short_conv")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("docs", [False, True])
def test_matches_fp64(docs, dtype, impl) -> None:
    check(case(docs=docs, impl=impl), dtype)


@needs_triton
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_options(bias, residual) -> None:
    check(case(bias=bias, residual=residual))


@needs_triton
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (3, 2, 4, 4), (1, 40, 3, 3), (2, 5, 130, 2), (1, 20, 2, 1), (1, 9, 2, 16)], ids=str
)
def test_shapes(shape) -> None:
    check(case(*shape))


@needs_triton
def test_channels_of_a_wider_tensor_and_a_transposed_one() -> None:
    made = case(C=4)
    for move in (lambda x: torch.cat((x, x), -1)[..., 2:6], lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)):
        ours, theirs = (lambda x, *a, f=f, move=move: f(move(x), *a) for f in (made.ours, made.reference))
        check(Case(ours, theirs, made.inputs))


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing(impl) -> None:
    x, w = torch.empty(2, 0, 3, device=DEVICE, requires_grad=True), torch.ones(3, 4, device=DEVICE, requires_grad=True)
    y = short_conv(x, w, impl=impl)
    gx, gw = torch.autograd.grad(y.sum(), [x, w])
    assert y.shape == gx.shape == x.shape
    assert gw.abs().max() == 0


@needs_triton
def test_nothing_comes_from_the_future_or_another_document() -> None:
    x, w = rand(1, 12, 2).float().requires_grad_(), rand(2, 4, seed=1).float()
    docs = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]], device=DEVICE)
    y = short_conv(x, w, None, docs, impl="triton")
    (g,) = torch.autograd.grad(y[0, 6].sum(), x)
    assert g[0, :, 0].nonzero().flatten().tolist() == [5, 6]


@needs_triton
def test_under_torch_compile_without_a_graph_break() -> None:
    made = case()
    made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
    check(made)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight_CK": torch.ones(4, 2)}, "weight"),
        ({"bias_C": torch.ones(2)}, "bias must be"),
        ({"docs_BT": torch.ones(5, 2)}, "docs must be"),
    ],
)
def test_what_is_refused(change, match) -> None:
    with pytest.raises(ValueError, match=match):
        short_conv(**{"x_BTC": torch.ones(2, 5, 3), "weight_CK": torch.ones(3, 2)} | change)


CASES = [case(T=27), case(T=27, docs=False)]
BUGS = [
    Bug("_backward_kernel", "dx += dy * w[None, :]", "dx = dy * w[None, :]"),
    Bug("_backward_kernel", "i_t + j < T", "i_t + j <= T", case=1),
    Bug("_backward_kernel", "docs_ptr + i_n + j", "docs_ptr + i_n"),
    Bug("_backward_kernel", "w_ptr + i_c * K + (K - 1 - j)", "w_ptr + i_c * K + j"),
    Bug("_backward_kernel", "tl.sum(dy * x, 0)", "tl.sum(dy, 0)"),
    Bug("_backward_kernel", "(o_k == K)[:, None]", "(o_k == K - 1)[:, None]"),
    Bug("_backward_kernel", "dx += dy\n", "dx += x\n"),
    Bug("_forward_kernel", "i_t >= j", "i_t >= 0", case=1),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    check_all_bugs_are_caught(monkeypatch, "short_conv", bug, CASES)


@needs_triton
def test_bf16() -> None:
    check(case(), torch.bfloat16)
