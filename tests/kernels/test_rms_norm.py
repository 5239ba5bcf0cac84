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

from slm_kernels import rms_norm, supported

reference = module("rms_norm").reference
pytestmark = pytest.mark.usefixtures("poisoned")


def case(
    *shape: int,
    weight: bool = True,
    residual: bool = False,
    offset: float = 0.0,
    impl: str = "triton",
    eps: float = 1e-5,
) -> Case:
    def ours(x, w, r):
        return rms_norm(x, w, eps, offset=offset, residual=r, impl=impl)

    inputs = [rand(*shape), rand(shape[-1], seed=1) if weight else None, rand(*shape, seed=2) if residual else None]
    return Case(ours, lambda x, w, r: reference(x, w, eps, offset, r), inputs, f"rms_norm {shape}")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize(
    "shape",
    [(4, 8), (1, 1), (1, 64), (3, 5, 7), (33, 48), (2, 576), (2, 3, 4, 16), (5, 1025), (64, 33)],
    ids=str,
)
@pytest.mark.parametrize("residual", [False, True])
def test_matches_fp64(shape, residual, dtype, impl) -> None:
    eps = 0.1 if shape[-1] == 1 else 1e-5  # a single number divided by its size has no gradient but through eps
    check(case(*shape, residual=residual, impl=impl, eps=eps), dtype)


@needs_triton
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gains(weight, residual, offset) -> None:
    check(case(7, 24, weight=weight, residual=residual, offset=offset))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)], ids=str)
def test_nothing(shape, impl) -> None:
    x = torch.randn(shape, device=DEVICE, requires_grad=True)
    w = torch.randn(8, device=DEVICE, requires_grad=True)
    y, s = rms_norm(x, w, residual=x * 2, impl=impl)
    gx, gw = torch.autograd.grad([y, s], [x, w], [y, s])
    assert y.shape == s.shape == gx.shape == shape
    assert gw.abs().max() == 0


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "columns of a wider tensor": lambda x: torch.cat((x, x, x), -1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "last dimension strided": lambda x: torch.stack((x, x), -1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
    "every second": lambda x: torch.stack((x, x), 1)[:, 1],
}


@needs_triton
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout) -> None:
    made = case(4, 3, 10, residual=True)
    move = LAYOUTS[layout]
    laid = Case(
        lambda x, w, r: made.ours(move(x), w, move(r)),
        lambda x, w, r: made.reference(move(x), w, move(r)),
        made.inputs,
        layout,
    )
    check(laid)


@needs_triton
def test_mixed_dtypes_as_under_autocast() -> None:
    """A branch in half precision joins an fp32 stream; y may be written in another dtype at once."""
    x, w, r = rand(6, 40).to(LOW), rand(40, seed=1).float(), rand(6, 40, seed=2).float()
    for t in (x, w, r):
        t.requires_grad_()
    found = rms_norm(x, w, residual=r, out_dtype=LOW, impl="triton")
    wanted = rms_norm(x, w, residual=r, out_dtype=LOW, impl="torch")
    assert [t.dtype for t in found] == [t.dtype for t in wanted] == [LOW, torch.float32]
    upstream = [torch.randn_like(t) for t in found]
    for a, b in zip(
        torch.autograd.grad(found, [x, w, r], upstream), torch.autograd.grad(wanted, [x, w, r], upstream), strict=True
    ):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


@needs_triton
def test_only_one_output_is_used() -> None:
    made = case(5, 12, residual=True)
    for i in (0, 1):
        check(Case(lambda *a, i=i: made.ours(*a)[i], lambda *a, i=i: made.reference(*a)[i], made.inputs, f"output {i}"))


@needs_triton
def test_large_and_tiny_numbers() -> None:
    for scale in (1e-12, 1e4):
        made = case(4, 32)
        made.inputs = [made.inputs[0] * scale, *made.inputs[1:]]
        check(made)


@needs_triton
def test_twice_the_same_bits() -> None:
    x, w = rand(50, 24).float().requires_grad_(), rand(24).float().requires_grad_()
    runs = []
    for _ in range(2):
        y = rms_norm(x, w, impl="triton")
        runs.append([y, *torch.autograd.grad(y.sin().sum(), [x, w])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@needs_triton
@pytest.mark.parametrize("residual", [False, True])
def test_under_torch_compile_without_a_graph_break(residual) -> None:
    made = case(6, 24, residual=residual, offset=1.0)
    made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
    check(made)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight": torch.ones(3)}, "weight must be"),
        ({"residual": torch.ones(2, 3)}, "residual must have"),
        ({"impl": "cuda"}, "not one of"),
    ],
)
def test_what_is_refused(change, match) -> None:
    with pytest.raises(ValueError, match=match):
        rms_norm(torch.ones(2, 4), **change)


@needs_triton
def test_supported_says_why_not() -> None:
    assert supported("rms_norm", torch.ones(2, 4, device=DEVICE), None, 1e-5, 0.0, None, None) == (True, "")
    ok, reason = supported("rms_norm", torch.ones(2, 4, device=DEVICE).double(), None, 1e-5, 0.0, None, None)
    assert not ok
    assert "fp64" in reason
    with pytest.raises(ValueError, match="fp64"):
        rms_norm(torch.ones(2, 4, device=DEVICE).double(), impl="triton")


CASES = [case(25, 12, residual=True), case(25, 12, offset=1.0)]
BUGS = [
    Bug("_backward_kernel", "- n * (tl.sum", "+ n * (tl.sum"),
    Bug("_backward_kernel", "keep_dims=True) / H)", "keep_dims=True))"),
    Bug("_backward_kernel", "dw += dy * n", "dw += g * n"),
    Bug("_backward_kernel", "dw += dy * n", "dw = dy * n"),
    Bug("_backward_kernel", "g = dy * gain", "g = dy"),
    Bug("_backward_kernel", "ds += tl.load", "ds -= tl.load"),
    Bug("_backward_kernel", "+ f32(offset)", "", case=1),
    Bug("_backward_kernel", "mask=i_row < N, other=0.0", "mask=i_row < N - 1, other=0.0"),
    Bug("_forward_kernel", "/ H + f32(eps)", "/ BLOCK + f32(eps)"),
    Bug(
        "_forward_kernel",
        "s = kept.to(tl.float32)",
        "s = s - tl.load(residual_ptr + i_n * residual_stride + i_h, mask=mask, other=0.0)",
    ),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    check_all_bugs_are_caught(monkeypatch, "rms_norm", bug, CASES)


@needs_triton
def test_bf16() -> None:
    check(case(7, 24, residual=True), torch.bfloat16)
