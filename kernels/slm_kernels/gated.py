"""Activations of feed-forwards, gated or not, alone and together with the linear layer behind them.

    h = act(g) u                        (h = act(x) without a gate's partner)
    dg = dh u act'(g),   du = dh act(g)

with, s being the logistic function and c = sqrt(2 / pi):

    silu        g s(g)                               s (1 + g (1 - s))
    gelu_tanh   g s(2 z), z = c (g + 0.044715 g^3)   s(2 z) + 2 g s (1 - s) c (1 + 3 0.044715 g^2)
    gelu        g Phi(g)                             Phi(g) + g phi(g)
    relu2       max(g, 0)^2                          2 max(g, 0)
    relu, sigmoid, tanh, identity

`activation_linear` is y = h W^T + b. It keeps g and u for the way back but not h, which d W = dy^T h needs: the kernel that
computes dg and du writes h once more, for it has both at hand. Of three numbers per token and inner channel two are kept.

Sources: Shazeer 2020 (GLU variants), arXiv 2002.05202; So et al. 2021 (squared ReLU), arXiv 2109.08668.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm_kernels._op import Differentiable
from slm_kernels._rows import as_rows
from slm_kernels._triton import tl, triton
from slm_kernels.dispatch import Op
from slm_kernels.matmul import no_autocast, product_dtype
from slm_kernels.tuning import Config, tuned

ACTIVATIONS = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def activation(
    x: Tensor, up: Tensor | None = None, *, act: str = "silu", fused: bool = False, impl: str | None = None
) -> Tensor:
    """act(x), or act(x) * up. Inputs are not modified; results are rounded once.

    Args:
        x: (..., F), rows contiguous at any distance; what the activation sees.
        up: (..., F), what it gates.
        act: a name in `ACTIVATIONS`.
        fused: ``x`` is (..., 2 F) and holds gate and up side by side.
        impl: see `slm_kernels.dispatch`.

    Raises:
        ValueError: unknown activation, or shapes that don't fit together.
    """
    _check(x, up, act, fused)
    return _activation(impl, x, up, act, fused)  # type: ignore[no-any-return]


def swiglu(gate: Tensor, up: Tensor, *, impl: str | None = None) -> Tensor:
    """silu(gate) * up."""
    return activation(gate, up, act="silu", impl=impl)


def geglu(gate: Tensor, up: Tensor, *, impl: str | None = None) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU."""
    return activation(gate, up, act="gelu_tanh", impl=impl)


def relu2(x: Tensor, *, impl: str | None = None) -> Tensor:
    """max(x, 0)^2."""
    return activation(x, act="relu2", impl=impl)


def activation_linear(
    x: Tensor,
    weight_DF: Tensor,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    act: str = "silu",
    fused: bool = False,
    impl: str | None = None,
) -> Tensor:
    """linear(activation(x, up), weight, bias) that doesn't keep the activation for the backward pass.

    Under autocast the product runs in autocast's dtype, as torch's does. Arguments as `activation`'s and
    `torch.nn.functional.linear`'s.
    """
    _check(x, up, act, fused)
    inner = x.shape[-1] // (1 + fused)
    if weight_DF.ndim != 2 or weight_DF.shape[1] != inner:
        raise ValueError(f"weight must be (D, {inner}), got {tuple(weight_DF.shape)}")
    return _linear(impl, x, weight_DF, up, bias, act, fused)  # type: ignore[no-any-return]


def _check(x: Tensor, up: Tensor | None, act: str, fused: bool) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"act={act!r} is not one of {', '.join(ACTIVATIONS)}")
    if up is not None and (fused or up.shape != x.shape or up.dtype != x.dtype):
        raise ValueError(
            f"up must have x's shape {tuple(x.shape)} and dtype {x.dtype}, and fused=False; got {tuple(up.shape)}, "
            f"{up.dtype} and fused={fused}"
        )
    if fused and x.shape[-1] % 2:
        raise ValueError(f"fused=True splits the last dimension in two, but it is {x.shape[-1]}")


def reference(x: Tensor, up: Tensor | None = None, act: str = "silu", fused: bool = False) -> Tensor:
    """`activation` from torch's own operations."""
    gate, up = x.chunk(2, -1) if fused else (x, up)
    h = ACTIVATIONS[act](gate)
    return h if up is None else h * up


def linear_reference(
    x: Tensor,
    weight: Tensor,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    act: str = "silu",
    fused: bool = False,
) -> Tensor:
    """`activation_linear` from torch's own operations."""
    return F.linear(reference(x, up, act, fused), weight, bias)


@triton.jit
def _act(g, ACT: tl.constexpr):
    """act(g), act'(g)."""
    if ACT == "silu":
        s = tl.sigmoid(g)
        return g * s, s * (1 + g * (1 - s))
    elif ACT == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
        return g * s, s + g * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * g * g)
    elif ACT == "gelu":
        below = 0.5 * (1 + tl.erf(g * 0.7071067811865476))
        return g * below, below + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
    elif ACT == "relu2":
        positive = tl.maximum(g, 0.0)
        return positive * positive, 2 * positive
    elif ACT == "relu":
        return tl.maximum(g, 0.0), tl.where(g > 0, 1.0, 0.0)
    elif ACT == "sigmoid":
        s = tl.sigmoid(g)
        return s, s * (1 - s)
    elif ACT == "tanh":
        s = tl.sigmoid(2 * g)
        return 2 * s - 1, 4 * s * (1 - s)
    else:
        return g, tl.full(g.shape, 1.0, tl.float32)


@triton.jit
def _forward_kernel(
    g_ptr, u_ptr, h_ptr, g_stride, u_stride, W, blocks, HAS_UP: tl.constexpr, ACT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A piece of BLOCK numbers of one row per program."""
    program = tl.program_id(0).to(tl.int64)
    row, cols = program // blocks, program % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = cols < W
    h, _ = _act(tl.load(g_ptr + row * g_stride + cols, mask=mask, other=0.0).to(tl.float32), ACT)
    if HAS_UP:
        h *= tl.load(u_ptr + row * u_stride + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(h_ptr + row * W + cols, h, mask=mask)


@triton.jit
def _backward_kernel(
    dh_ptr,
    g_ptr,
    u_ptr,
    dg_ptr,
    du_ptr,
    h_ptr,
    dh_stride,
    g_stride,
    u_stride,
    dg_stride,
    W,
    blocks,
    HAS_UP: tl.constexpr,
    WRITE_H: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, cols = program // blocks, program % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = cols < W
    dh = tl.load(dh_ptr + row * dh_stride + cols, mask=mask, other=0.0).to(tl.float32)
    a, slope = _act(tl.load(g_ptr + row * g_stride + cols, mask=mask, other=0.0).to(tl.float32), ACT)
    dg = dh * slope
    h = a
    if HAS_UP:
        u = tl.load(u_ptr + row * u_stride + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(du_ptr + row * dg_stride + cols, dh * a, mask=mask)
        dg *= u
        h = a * u
    tl.store(dg_ptr + row * dg_stride + cols, dg, mask=mask)
    if WRITE_H:
        tl.store(h_ptr + row * W + cols, h, mask=mask)


DEFAULT = Config(2048, 4)
"""16 numbers per thread and tensor."""
CANDIDATES = [Config(block, warps) for block in (1024, 2048, 4096) for warps in (4, 8)]


def _halves(x: Tensor, up: Tensor | None, fused: bool) -> tuple[Tensor, Tensor | None]:
    """Gate and up as rows; one long row where memory allows."""
    if fused:
        rows = as_rows(x)
        return rows.chunk(2, -1)  # type: ignore[return-value]
    if x.is_contiguous() and (up is None or up.is_contiguous()):
        return x.view(1, -1), None if up is None else up.view(1, -1)
    return as_rows(x), None if up is None else as_rows(up)


def _forward(x: Tensor, up: Tensor | None, act: str, fused: bool) -> Tensor:
    h = x.new_empty((*x.shape[:-1], x.shape[-1] // (1 + fused)))
    if h.numel() == 0:
        return h
    g, u = _halves(x, up, fused)
    N, W = g.shape

    def launch(config: Config) -> None:
        blocks = triton.cdiv(W, config.block)
        _forward_kernel[(N * blocks,)](
            g, u, h, g.stride(0), 0 if u is None else u.stride(0), W, blocks, HAS_UP=u is not None, ACT=act,
            BLOCK=config.block, num_warps=config.warps,
        )  # fmt: skip

    launch(tuned("activation", (act, x.dtype, u is not None), DEFAULT, CANDIDATES, launch))
    return h


def _launch_backward(
    dh: Tensor, x: Tensor, up: Tensor | None, act: str, fused: bool, write_h: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, du (empty without ``up``) and h (empty unless asked for)."""
    none = x.new_empty(0)
    dx, du = x.new_empty(x.shape), none.clone() if up is None else up.new_empty(up.shape)
    h = dh.new_empty(dh.shape, dtype=x.dtype) if write_h else none
    if dh.numel() == 0:
        return dx, du, h
    g, u = _halves(x, up, fused)
    N, W = g.shape
    dh_NW = dh.reshape(N, W)
    dh_NW = dh_NW if dh_NW.stride(-1) == 1 else dh_NW.contiguous()
    dg, du_view = _halves(dx, None if up is None else du, fused)
    dg = dg.view(N, W) if not fused else dg
    du_view = du_view.view(N, W) if du_view is not None and not fused else du_view

    def launch(config: Config) -> None:
        blocks = triton.cdiv(W, config.block)
        _backward_kernel[(N * blocks,)](
            dh_NW, g, u, dg, du_view, h, dh_NW.stride(0), g.stride(0), 0 if u is None else u.stride(0), dg.stride(0), W,
            blocks, HAS_UP=u is not None, WRITE_H=write_h, ACT=act, BLOCK=config.block, num_warps=config.warps,
        )  # fmt: skip

    launch(tuned("activation backward", (act, x.dtype, u is not None, write_h), DEFAULT, CANDIDATES, launch))
    return dx, du, h


def _fake_backward(dh: Tensor, x: Tensor, up: Tensor | None, act: str, fused: bool, write_h: bool) -> Any:
    du = x.new_empty(0) if up is None else up.new_empty(up.shape)
    return x.new_empty(x.shape), du, dh.new_empty(dh.shape if write_h else (0,), dtype=x.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, up, ctx.act, ctx.fused = inputs
    ctx.save_for_backward(x, up)


def _backward(launch: Any, ctx: Any, dh: Tensor | None) -> tuple[Tensor | None, ...]:
    if dh is None:
        return (None,) * 4
    x, up = ctx.saved_tensors
    dx, du, _ = launch(dh, x, up, ctx.act, ctx.fused, False)
    return dx, None if up is None else du, None, None


_function = Differentiable(
    "activation",
    _forward,
    fake=lambda x, up, act, fused: x.new_empty((*x.shape[:-1], x.shape[-1] // (1 + fused))),
    setup=_setup,
    backward=_backward,
    backward_launcher=_launch_backward,
    fake_backward=_fake_backward,
)


# With the linear layer behind it. The products are torch's; only what is kept differs.


def _activate(impl: str, x: Tensor, up: Tensor | None, act: str, fused: bool) -> Tensor:
    return _forward(x, up, act, fused) if impl == "triton" else reference(x, up, act, fused)


def _linear_forward(
    x: Tensor, weight: Tensor, up: Tensor | None, bias: Tensor | None, act: str, fused: bool, dtype: torch.dtype, impl: str
) -> Tensor:  # fmt: skip
    with no_autocast(x):
        h = _activate(impl, x, up, act, fused).to(dtype)
        return F.linear(h, weight.to(dtype), None if bias is None else bias.to(dtype))


def _linear_fake(x: Tensor, weight: Tensor, up: Any, bias: Any, act: str, fused: bool, dtype: Any, impl: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, up, bias, *ctx.options = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, up)


def _linear_backward(launch: Any, ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, weight, up = ctx.saved_tensors
    dx, dw, du = launch(dy, x, weight, up, *ctx.options)
    db = None
    if ctx.bias_dtype is not None:
        db = dy.flatten(0, -2).sum(0, dtype=torch.promote_types(dy.dtype, torch.float32)).to(ctx.bias_dtype)
    return dx, dw, None if up is None else du, db, None, None, None, None


def _linear_launch_backward(
    dy: Tensor, x: Tensor, weight: Tensor, up: Tensor | None, act: str, fused: bool, dtype: torch.dtype, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    with no_autocast(x):
        dy_ND = dy.reshape(-1, weight.shape[0])
        dh = (dy_ND @ weight.to(dtype)).to(x.dtype).view(*x.shape[:-1], weight.shape[1])
        if impl == "triton":
            dx, du, h = _launch_backward(dh, x, up, act, fused, True)
        else:
            dx, du, h = _torch_backward(dh, x, up, act, fused)
        dw = dy_ND.mT @ h.reshape(-1, weight.shape[1]).to(dtype)
        return dx, dw.to(weight.dtype), du


def _torch_backward(dh: Tensor, x: Tensor, up: Tensor | None, act: str, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass once more, with autograd at work inside."""
    inputs = [t.detach().requires_grad_() for t in (x, up) if t is not None]
    with torch.enable_grad():
        h = reference(inputs[0], inputs[1] if up is not None else None, act, fused)
    dx, *du = torch.autograd.grad(h, inputs, dh)
    # Clones: an operator's outputs must be its own (identity's gradient is dh).
    return dx.clone() if dx.data_ptr() == dh.data_ptr() else dx, du[0] if du else x.new_empty(0), h.detach()


def _linear_fake_backward(dy: Tensor, x: Tensor, weight: Tensor, up: Tensor | None, *rest: Any) -> Any:
    du = x.new_empty(0) if up is None else up.new_empty(up.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), du


_linear_function = Differentiable(
    "activation_linear",
    _linear_forward,
    fake=_linear_fake,
    setup=_linear_setup,
    backward=_linear_backward,
    backward_launcher=_linear_launch_backward,
    fake_backward=_linear_fake_backward,
)


def _linear_apply(
    impl: str, x: Tensor, weight: Tensor, up: Tensor | None, bias: Tensor | None, act: str, fused: bool
) -> Tensor:
    return _linear_function(x, weight, up, bias, act, fused, product_dtype(x), impl)  # type: ignore[no-any-return]


def _linear_torch(x: Tensor, weight: Tensor, up: Tensor | None, bias: Tensor | None, act: str, fused: bool) -> Tensor:
    if torch.compiler.is_compiling():  # which decides itself what to keep
        return linear_reference(x, weight, up, bias, act, fused)
    return _linear_apply("torch", x, weight, up, bias, act, fused)


def _linear_triton(x: Tensor, weight: Tensor, up: Tensor | None, bias: Tensor | None, act: str, fused: bool) -> Tensor:
    return _linear_apply("triton", x, weight, up, bias, act, fused)


def _why_not(x: Tensor, *rest: Any) -> str:
    return "" if x.dtype != torch.float64 else "inputs are fp64, the kernel computes in fp32"


_activation = Op("activation", reference, _function, _why_not, fused_by_inductor=True)
_linear = Op("activation_linear", _linear_torch, _linear_triton, _why_not, fused_by_inductor=True)
