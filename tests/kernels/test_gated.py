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

from slm_kernels import activation, activation_linear, geglu, relu2, swiglu

gated = module("gated")
pytestmark = pytest.mark.usefixtures("poisoned")


def case(*shape: int, act: str = "silu", how: str = "up", impl: str = "triton") -> Case:
    """``how``: alone, up (gate and up apart), fused (side by side), views (of one tensor)."""
    fused = how == "fused"
    inputs = [rand(*shape, scale=2.0)]
    if how == "up":
        inputs.append(rand(*shape, seed=1))

    def arranged(call):
        return (lambda x: call(*x.chunk(2, -1))) if how == "views" else call

    def ours(x, up=None):
        return activation(x, up, act=act, fused=fused, impl=impl)

    return Case(arranged(ours), arranged(lambda x, up=None: gated.reference(x, up, act, fused)), inputs, f"{act} {how}")


def linear_case(*shape: int, act: str = "silu", how: str = "up", bias: bool = True, impl: str = "triton") -> Case:
    inner = shape[-1] // (2 if how in ("fused", "views") else 1)
    fused = how == "fused"
    weight, b = rand(6, inner, seed=2), rand(6, seed=3) if bias else None
    inputs = [rand(*shape), rand(*shape, seed=1) if how == "up" else None, weight, b]

    def arranged(call):
        return (lambda x, _, w, b: call(*x.chunk(2, -1), w, b)) if how == "views" else call

    def ours(x, up, w, b):
        return activation_linear(x, w, up, b, act=act, fused=fused, impl=impl)

    return Case(
        arranged(ours),
        arranged(lambda x, up, w, b: gated.linear_reference(x, w, up, b, act, fused)),
        inputs,
        f"{act} {how} linear",
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("how", ["alone", "up", "fused", "views"])
@pytest.mark.parametrize("act", gated.ACTIVATIONS)
def test_matches_fp64(act, how, dtype, impl) -> None:
    check(case(3, 5, 34, act=act, how=how, impl=impl), dtype)


@needs_triton
@pytest.mark.parametrize("shape", [(1, 2), (7,), (1, 2050), (4, 1, 6), (3, 4098)], ids=str)
@pytest.mark.parametrize("how", ["up", "views"])
def test_shapes(shape, how) -> None:
    if how == "views" and shape[-1] % 2:
        return
    check(case(*shape, how=how))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("how", ["alone", "up", "fused", "views"])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh", "relu2", "identity"])
def test_with_the_linear_layer(act, how, impl) -> None:
    check(linear_case(3, 5, 34, act=act, how=how, impl=impl), torch.float32)


@pytest.mark.parametrize("impl", IMPLS)
def test_with_the_linear_layer_in_half_precision_and_without_bias(impl) -> None:
    check(linear_case(3, 5, 34, bias=False, impl=impl), LOW)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_nothing(shape, impl) -> None:
    x, w = torch.empty(shape, device=DEVICE, requires_grad=True), torch.randn(3, 8, device=DEVICE, requires_grad=True)
    y = activation_linear(activation(x, x, impl=impl), w, impl=impl)
    gx, gw = torch.autograd.grad(y, [x, w], torch.ones_like(y))
    assert y.shape == (*shape[:-1], 3)
    assert gx.shape == shape
    assert gw.abs().max() == 0


def kept_bytes(call) -> int:
    """What autograd keeps for the way back."""
    kept: dict[int, int] = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(kept.values())


@pytest.mark.parametrize("impl", IMPLS)
def test_the_activation_is_not_kept(impl) -> None:
    gate, up = (torch.randn(64, 256, device=DEVICE, requires_grad=True) for _ in range(2))
    w = torch.randn(16, 256, device=DEVICE, requires_grad=True)
    inputs = gate.nbytes + up.nbytes + w.nbytes
    assert kept_bytes(lambda: activation_linear(gate, w, up, impl=impl)) == inputs
    assert kept_bytes(lambda: gated.linear_reference(gate, w, up)) >= inputs + gate.nbytes


def test_autocast_is_as_torchs() -> None:
    g, u, w, b = (t.float().requires_grad_() for t in (rand(5, 12), rand(5, 12, seed=1), rand(4, 12), rand(4)))
    with torch.autocast(DEVICE, torch.bfloat16):
        ours = activation_linear(g, w, u, b)
        theirs = gated.linear_reference(g, w, u, b)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    grads = [torch.autograd.grad(y.float().square().sum(), [g, u, w, b]) for y in (ours, theirs)]
    for a, e in zip(*grads, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e, rtol=4e-2, atol=4e-2)


@needs_triton
def test_extreme_inputs_stay_finite() -> None:
    x = torch.tensor([-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4], device=DEVICE, requires_grad=True)
    for act in gated.ACTIVATIONS:
        y = activation(x, act=act, impl="triton")
        torch.testing.assert_close(y, gated.ACTIVATIONS[act](x))
        assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()


def test_short_names() -> None:
    g, u = rand(3, 4), rand(3, 4, seed=1)
    torch.testing.assert_close(swiglu(g, u), torch.nn.functional.silu(g) * u)
    torch.testing.assert_close(geglu(g, u), torch.nn.functional.gelu(g, approximate="tanh") * u)
    torch.testing.assert_close(relu2(g), g.clamp(min=0) ** 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("how", ["up", "fused"])
def test_under_torch_compile_without_a_graph_break(how, impl) -> None:
    for made in (case(3, 5, 34, how=how, impl=impl), linear_case(3, 5, 34, how=how, impl=impl)):
        torch._dynamo.reset()
        made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
        check(made)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"act": "swish"}, "not one of"),
        ({"up": torch.ones(2, 3)}, "up must have"),
        ({"up": torch.ones(2, 4).half()}, "up must have"),
        ({"x": torch.ones(2, 5), "fused": True}, "splits the last dimension"),
    ],
)
def test_what_is_refused(change, match) -> None:
    with pytest.raises(ValueError, match=match):
        activation(**{"x": torch.ones(2, 4)} | change)
    with pytest.raises(ValueError, match="weight must be"):
        activation_linear(torch.ones(2, 4), torch.ones(3, 5))


CASES = [
    case(3, 35),
    case(3, 35, act="gelu_tanh"),
    case(3, 35, act="gelu"),
    case(3, 35, act="relu2"),
    linear_case(3, 34),
    case(3, 34, how="fused"),
]
BUGS = [
    Bug("_act", "s * (1 + g * (1 - s))", "s * (1 + g * s)"),
    Bug("_act", "1 + 0.134145 * g * g", "1 + 0.044715 * g * g", case=1),
    Bug("_act", "below + g * 0.3989422804014327", "below + 0.3989422804014327", case=2),
    Bug("_act", "2 * positive", "positive", case=3),
    Bug("_backward_kernel", "dg = dh * slope", "dg = slope"),
    Bug("_backward_kernel", "dh * a, mask", "dh * u, mask"),
    Bug("_backward_kernel", "dg *= u", "dg *= a"),
    Bug("_backward_kernel", "h = a * u", "h = a", case=4),
    Bug("_backward_kernel", "u_ptr + row * u_stride", "u_ptr + row * W", case=5),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    check_all_bugs_are_caught(monkeypatch, "gated", bug, CASES)


@needs_triton
def test_bf16() -> None:
    check(case(3, 5, 34), torch.bfloat16)
