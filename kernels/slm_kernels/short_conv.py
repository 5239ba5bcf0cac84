"""Short causal convolution of each channel along the sequence, within documents (canon layers; Mamba, GDN and others).

With K taps w (w_(K-1) on the token itself), and [same] = 1 where both places lie in the same document of the same row:

    y_t = sum_j w_(K-1-j) x_(t-j) [same(t, t-j)]  (+ b)  (+ x_t if residual)

    dx_s = sum_j w_(K-1-j) dy_(s+j) [same(s+j, s)]  (+ dy_s)
    dw_(K-1-j) = sum_s dy_(s+j) x_s [same(s+j, s)],   db = sum_t dy_t

One pass over x and y in each direction instead of K. In the backward pass a fixed number of programs walks over the
sequence and each keeps sums for dw and db; they are added up in a fixed order.

Source: Allen-Zhu 2025 (Physics of Language Models 4.1, canon layers).
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm_kernels._op import Differentiable
from slm_kernels._rows import programs
from slm_kernels._triton import next_power_of_2, tl, triton
from slm_kernels.dispatch import Op
from slm_kernels.tuning import Config, tuned

MAX_TAPS = 16


def short_conv(
    x_BTC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None = None,
    docs_BT: Tensor | None = None,
    *,
    residual: bool = False,
    impl: str | None = None,
) -> Tensor:
    """See the module's text. ``docs_BT`` numbers the document of each place; None: each row is one. Returns (B, T, C)."""
    if x_BTC.ndim != 3 or weight_CK.ndim != 2 or weight_CK.shape[0] != x_BTC.shape[2]:
        raise ValueError(f"x must be (B, T, C) and weight (C, K), got {tuple(x_BTC.shape)}, {tuple(weight_CK.shape)}")
    if bias_C is not None and bias_C.shape != x_BTC.shape[2:]:
        raise ValueError(f"bias must be ({x_BTC.shape[2]},), got {tuple(bias_C.shape)}")
    if docs_BT is not None and docs_BT.shape != x_BTC.shape[:2]:
        raise ValueError(f"docs must be {tuple(x_BTC.shape[:2])}, got {tuple(docs_BT.shape)}")
    return _op(impl, x_BTC, weight_CK, bias_C, docs_BT, residual)  # type: ignore[no-any-return]


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, docs: Tensor | None = None, residual: bool = False
) -> Tensor:
    """The same from torch's own operations."""
    T, K = x.shape[1], weight.shape[1]
    w = weight.to(x.dtype)
    y = x * w[:, K - 1]
    for j in range(1, min(K, T)):
        tap = F.pad(x[:, : T - j], (0, 0, j, 0))
        if docs is not None:
            tap = tap * F.pad(docs[:, j:] == docs[:, : T - j], (j, 0))[..., None].to(x.dtype)
        y = y + tap * w[:, K - 1 - j]
    if bias is not None:
        y = y + bias.to(y.dtype)
    return x + y if residual else y


@triton.jit
def _forward_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    docs_ptr,
    y_ptr,
    sb,
    st,
    N,
    T,
    C,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_DOCS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS places (of all rows one after the other) by BLOCK channels."""
    i_n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i_t, in_c = i_n % T, i_c < C
    p_x = x_ptr + (i_n // T * sb + i_t * st)[:, None] + i_c[None, :]
    y = tl.zeros((ROWS, BLOCK), tl.float32)
    for j in tl.static_range(K):
        there = (i_n < N) & (i_t >= j)
        if HAS_DOCS:
            mine = tl.load(docs_ptr + i_n, mask=there, other=0)
            there = there & (tl.load(docs_ptr + i_n - j, mask=there, other=0) == mine)
        x = tl.load(p_x - j * st, mask=there[:, None] & in_c[None, :], other=0.0).to(tl.float32)
        w = tl.load(w_ptr + i_c * K + (K - 1 - j), mask=in_c, other=0.0).to(tl.float32)
        y += x * w[None, :]
        if RESIDUAL and j == 0:
            y += x
    if HAS_BIAS:
        y += tl.load(bias_ptr + i_c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + i_n[:, None] * C + i_c[None, :], y, mask=(i_n < N)[:, None] & in_c[None, :])


@triton.jit
def _backward_kernel(
    dy_ptr,
    x_ptr,
    w_ptr,
    docs_ptr,
    dx_ptr,
    dw_ptr,
    dy_sb,
    dy_st,
    sb,
    st,
    N,
    T,
    C,
    tiles,
    K: tl.constexpr,
    POWER: tl.constexpr,
    HAS_DOCS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``tiles`` tiles of ROWS places. Sums for dw stand at 0 .. K - 1 of a tile of POWER, the one for db at K."""
    program = tl.program_id(0).to(tl.int64)
    i_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_c, o_k = i_c < C, tl.arange(0, POWER)
    sums = tl.zeros((POWER, BLOCK), tl.float32)
    for tile in range(tiles):
        i_n = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        i_t, here = i_n % T, (i_n < N)[:, None] & in_c[None, :]
        p_dy = dy_ptr + (i_n // T * dy_sb + i_t * dy_st)[:, None] + i_c[None, :]
        x = tl.load(x_ptr + (i_n // T * sb + i_t * st)[:, None] + i_c[None, :], mask=here, other=0.0).to(tl.float32)
        dx = tl.zeros((ROWS, BLOCK), tl.float32)
        for j in tl.static_range(K):
            there = (i_n < N) & (i_t + j < T)
            if HAS_DOCS:
                mine = tl.load(docs_ptr + i_n, mask=there, other=0)
                there = there & (tl.load(docs_ptr + i_n + j, mask=there, other=0) == mine)
            dy = tl.load(p_dy + j * dy_st, mask=there[:, None] & in_c[None, :], other=0.0).to(tl.float32)
            w = tl.load(w_ptr + i_c * K + (K - 1 - j), mask=in_c, other=0.0).to(tl.float32)
            dx += dy * w[None, :]
            sums += tl.where((o_k == K - 1 - j)[:, None], tl.sum(dy * x, 0)[None, :], 0.0)
            if j == 0:
                sums += tl.where((o_k == K)[:, None], tl.sum(dy, 0)[None, :], 0.0)
                if RESIDUAL:
                    dx += dy
        tl.store(dx_ptr + i_n[:, None] * C + i_c[None, :], dx, mask=here)
    p_dw = dw_ptr + (program * (K + 1) + o_k)[:, None] * C + i_c[None, :]
    tl.store(p_dw, sums, mask=(o_k <= K)[:, None] & in_c[None, :])


BLOCK = 128
"""Channels of a program."""
CANDIDATES = [Config(rows, warps) for rows in (8, 16, 32) for warps in (4, 8)]
DEFAULT = Config(16, 4)
"""Places at a time."""


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, docs: Tensor | None, residual: bool) -> Tensor:
    B, T, C = x.shape
    y = x.new_empty(x.shape)
    if x.numel() == 0:
        return y
    x, weight, docs = _adjacent(x), weight.contiguous(), None if docs is None else docs.contiguous()

    def launch(config: Config) -> None:
        _forward_kernel[(triton.cdiv(B * T, config.block), triton.cdiv(C, BLOCK))](
            x, weight, bias, docs, y, x.stride(0), x.stride(1), B * T, T, C, K=weight.shape[1], HAS_BIAS=bias is not None,
            HAS_DOCS=docs is not None, RESIDUAL=residual, ROWS=config.block, BLOCK=BLOCK, num_warps=config.warps,
        )  # fmt: skip

    launch(tuned("short_conv", (C, weight.shape[1], x.dtype), DEFAULT, CANDIDATES, launch))
    return y


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, docs, ctx.residual = inputs
    ctx.save_for_backward(x, weight, docs)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(launch: Any, ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 5
    dx, sums = launch(dy, *ctx.saved_tensors, ctx.residual)
    weight = ctx.saved_tensors[1]
    dw, db = sums[:-1].mT.to(weight.dtype), None if ctx.bias_dtype is None else sums[-1].to(ctx.bias_dtype)
    return dx, dw, db, None, None


def _launch_backward(
    dy: Tensor, x: Tensor, weight: Tensor, docs: Tensor | None, residual: bool
) -> tuple[Tensor, Tensor]:
    """dx, and (K + 1, C) fp32: the transpose of dw, and db below."""
    B, T, C = x.shape
    K = weight.shape[1]
    dx = x.new_empty(x.shape)
    if x.numel() == 0:
        return dx, x.new_zeros(K + 1, C, dtype=torch.float32)
    dy, x, weight = _adjacent(dy), _adjacent(x), weight.contiguous()
    docs = None if docs is None else docs.contiguous()

    def launch(config: Config) -> Tensor:
        columns = triton.cdiv(C, BLOCK)
        P, tiles = programs(B * T, config.block, x.device, per_processor=max(1, 16 // columns))
        sums = x.new_empty(P, K + 1, C, dtype=torch.float32)
        _backward_kernel[(P, columns)](
            dy, x, weight, docs, dx, sums, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1), B * T, T, C, tiles, K=K,
            POWER=next_power_of_2(K + 1), HAS_DOCS=docs is not None, RESIDUAL=residual, ROWS=config.block, BLOCK=BLOCK,
            num_warps=config.warps,
        )  # fmt: skip
        return sums

    sums = launch(tuned("short_conv backward", (C, K, x.dtype), DEFAULT, CANDIDATES, launch))
    return dx, sums.sum(0)


_function = Differentiable(
    "short_conv",
    _forward,
    fake=lambda x, *rest: x.new_empty(x.shape),
    setup=_setup,
    backward=_backward,
    backward_launcher=_launch_backward,
    fake_backward=lambda dy, x, weight, *rest: (
        x.new_empty(x.shape),
        x.new_empty((weight.shape[1] + 1, x.shape[2]), dtype=torch.float32),
    ),
)


def _why_not(x_BTC: Tensor, weight_CK: Tensor, *rest: Any) -> str:
    if x_BTC.dtype == torch.float64:
        return "inputs are fp64, the kernel computes in fp32"
    return "" if weight_CK.shape[1] <= MAX_TAPS else f"there are {weight_CK.shape[1]} taps, the kernel does {MAX_TAPS}"


_op = Op("short_conv", reference, _function, _why_not, fused_by_inductor=True)
