"""What a linear layer's softmax says of its targets, without storing logits: for evaluation and for teachers.

A program multiplies a block of rows with a range of the vocabulary, tile by tile, and keeps of each row only a running
maximum m, s = sum exp(z - m), the target's z and the sum of all z. The ranges are put together afterwards:

    lse = m* + log sum_ranges s exp(m - m*),   m* = max over ranges of m

Products are summed in fp32 and never rounded. There is no gradient: a backward pass needs every logit again, which
`linear_cross_entropy` gets cheaper by computing gradients in chunks right away.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slm_kernels._rows import processors
from slm_kernels._triton import f32, tl, triton
from slm_kernels.cross_entropy import PLAIN, Head
from slm_kernels.dispatch import Op
from slm_kernels.matmul import no_autocast, product_dtype
from slm_kernels.tuning import Config, tuned

CHUNK_BYTES = 32 << 20
"""fp32 logits that the torch path holds at a time."""


class LSE(NamedTuple):
    """Per row, (N,), fp32 (fp64 for fp64 inputs)."""

    lse: Tensor
    """log sum exp of the logits."""
    target: Tensor
    """The target's logit; 0 without targets or where the target is ignored."""
    mean: Tensor
    """Mean of the logits."""
    top: Tensor
    """The greatest logit."""


def linear_lse(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor | None = None,
    head: Head = PLAIN,
    *,
    bias: Tensor | None = None,
    impl: str | None = None,
) -> LSE:
    """Softmax statistics of x W^T; no gradient.

    Args:
        targets_N: int64.
        head: how logits come about; of its fields those that belong to the loss (z_loss, label_smoothing) play no part.
        bias: (V,), added to the scaled products.
        impl: see `slm_kernels.dispatch`.
    """
    with torch.no_grad():
        return LSE(*_op(impl, x_ND, weight_VD, targets_N, head, bias))


def in_chunks(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor | None, head: Head, bias: Tensor | None) -> LSE:
    """See `linear_lse`."""
    dtype = product_dtype(x_ND)
    wide = torch.promote_types(dtype, torch.float32)
    w_VD, rows = weight_VD.to(dtype), max(16, CHUNK_BYTES // (4 * weight_VD.shape[0]))
    out_4N = x_ND.new_zeros(4, x_ND.shape[0], dtype=wide)
    with no_autocast(x_ND):
        for start in range(0, x_ND.shape[0], rows):
            block = slice(start, start + rows)
            z_BV = (x_ND[block].to(dtype) @ w_VD.mT).to(wide).mul_(head.scale)
            if bias is not None:
                z_BV += bias
            if head.softcap is not None:
                z_BV.div_(head.softcap).tanh_().mul_(head.softcap)
            z_BV = z_BV[:, : head.valid]
            out_4N[0, block], out_4N[2, block], out_4N[3, block] = z_BV.logsumexp(-1), z_BV.mean(-1), z_BV.amax(-1)
            if targets_N is not None:
                counted_B = targets_N[block] != head.ignore_index
                z_B = z_BV.gather(1, targets_N[block].where(counted_B, 0)[:, None])[:, 0]
                out_4N[1, block] = z_B.where(counted_B, 0.0)
    return LSE(*out_4N)


@triton.jit
def _kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    targets_ptr,
    out_ptr,
    x_stride,
    w_stride,
    N,
    D,
    V,
    valid,
    per_range,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """ROWS rows by one range of ``per_range`` tiles of COLS entries. Rows vary fastest: programs that run together read the
    same part of W, which then comes from the L2 cache."""
    i_n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    o_v, o_d = tl.arange(0, COLS), tl.arange(0, DEPTH)
    scale, cap = f32(scale), f32(cap)
    p_x = x_ptr + i_n.to(tl.int64)[:, None] * x_stride
    top = tl.full((ROWS,), -3.0e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    target = tl.zeros((ROWS,), tl.float32)
    everything = tl.zeros((ROWS,), tl.float32)
    y = tl.full((ROWS,), -1, tl.int64)
    if HAS_TARGETS:
        y = tl.load(targets_ptr + i_n, mask=i_n < N, other=-1)
    for tile in range(per_range):
        i_v = (part * per_range + tile) * COLS + o_v
        p_w = w_ptr + i_v.to(tl.int64)[None, :] * w_stride
        z = tl.zeros((ROWS, COLS), tl.float32)
        for k in range(0, D, DEPTH):
            i_d = k + o_d
            x = tl.load(p_x + i_d[None, :], mask=(i_n < N)[:, None] & (i_d < D)[None, :], other=0.0)
            w = tl.load(p_w + i_d[:, None], mask=(i_v < V)[None, :] & (i_d < D)[:, None], other=0.0)
            if UPCAST:
                x, w = x.to(tl.float32), w.to(tl.float32)
            z = tl.dot(x, w, z, input_precision="ieee")
        z *= scale
        if HAS_BIAS:
            z += tl.load(bias_ptr + i_v, mask=i_v < V, other=0.0).to(tl.float32)[None, :]
        if HAS_CAP:
            z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)
        there = (i_v < valid)[None, :]
        everything += tl.sum(tl.where(there, z, 0.0), 1)
        target += tl.sum(tl.where(i_v[None, :] == y[:, None], z, 0.0), 1)
        z = tl.where(there, z, -3.0e38)
        higher = tl.maximum(top, tl.max(z, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.where(there, tl.exp(z - higher[:, None]), 0.0), 1)
        top = higher
    p_out = out_ptr + part.to(tl.int64) * 4 * N + i_n
    tl.store(p_out, top, mask=i_n < N)
    tl.store(p_out + N, total, mask=i_n < N)
    tl.store(p_out + 2 * N, target, mask=i_n < N)
    tl.store(p_out + 3 * N, everything, mask=i_n < N)


DEFAULT = Config(128, 8, 3)
"""Rows and columns of a tile."""
CANDIDATES = [Config(block, warps, stages) for block in (64, 128) for warps in (4, 8) for stages in (2, 3, 4)]
DEPTH = 64


def never_stored(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor | None, head: Head, bias: Tensor | None) -> LSE:
    """See `linear_lse`."""
    dtype = product_dtype(x_ND)
    x_ND, w_VD = x_ND.to(dtype).contiguous(), weight_VD.to(dtype).contiguous()
    N, D, V = x_ND.shape[0], x_ND.shape[1], w_VD.shape[0]
    if N == 0:
        return LSE(*x_ND.new_empty(4, 0, dtype=torch.float32))
    if targets_N is not None:  # an ignored target is no entry at all
        targets_N = targets_N.where(targets_N != head.ignore_index, -1)

    def launch(config: Config) -> Tensor:
        tiles, blocks = -(-V // config.block), -(-N // config.block)
        per_range = -(-tiles // max(1, min(tiles, 4 * processors(x_ND.device) // blocks)))
        parts = -(-tiles // per_range)
        out_S4N = x_ND.new_empty(parts, 4, N, dtype=torch.float32)
        _kernel[(blocks, parts)](
            x_ND, w_VD, None if bias is None else bias.contiguous(), targets_N, out_S4N, x_ND.stride(0), w_VD.stride(0),
            N, D, V, head.valid or V, per_range, head.scale, head.softcap or 1.0, HAS_BIAS=bias is not None,
            HAS_CAP=head.softcap is not None, HAS_TARGETS=targets_N is not None, UPCAST=x_ND.device.type == "cpu",
            ROWS=config.block, COLS=config.block, DEPTH=DEPTH, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
        return out_S4N

    out_S4N = launch(tuned("linear_lse", (D, V, dtype), DEFAULT, CANDIDATES, launch))
    top_SN, total_SN, target_SN, sum_SN = out_S4N.unbind(1)
    top_N = top_SN.amax(0)
    lse_N = top_N + (total_SN * (top_SN - top_N).exp()).sum(0).log()
    return LSE(lse_N, target_SN.sum(0), sum_SN.sum(0) / (head.valid or V), top_N)


def _why_not(x_ND: Tensor, *rest: object) -> str:
    return "" if product_dtype(x_ND) != torch.float64 else "inputs are fp64, the kernel sums in fp32"


_op = Op("linear_lse", in_chunks, never_stored, _why_not)
