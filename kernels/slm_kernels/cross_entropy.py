"""Cross entropy that leaves the gradient where the logits stood.

For one row with raw products a = x W^T, targets y, label smoothing e over V' = ``valid`` entries and z-loss weight c:

    u = scale a + bias,   z = cap tanh(u / cap)   (z = u without a cap; entries past V' score -inf)
    lse  = log sum_v exp z_v
    nll  = lse - z_y
    loss = lse - (1 - e) z_y - e / V' sum_v z_v + c lse^2

With p = softmax(z), d lse / d z = p, hence

    d loss / d z = (1 + 2 c lse) p - (1 - e) onehot(y) - e / V'
    d loss / d a = scale (1 - (z / cap)^2) d loss / d z

The kernel reads a row twice: once for a running maximum and sum, then again, while the row is still in the L2 cache, to
write the gradient over it. p_y - 1 is taken in fp32 before the result is rounded to the logits' dtype: subtracting 1 from
a stored p_y would leave nothing of it where the model is sure.

Sources: Milakov & Gimelshein 2018 (online softmax), arXiv 1805.02867; z-loss: PaLM, arXiv 2204.02311; cap: Gemma 2,
arXiv 2408.00118.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slm_kernels._triton import f32, next_power_of_2, tl, triton
from slm_kernels.dispatch import Op
from slm_kernels.tuning import Config, tuned

CPU_BLOCK_BYTES = 1 << 20
"""fp32 logits that the torch path treats at a time on a CPU: all its passes then find them in the cache."""
BLOCK_BYTES = 64 << 20
"""The same elsewhere."""


class Head(NamedTuple):
    """From products to losses; see the module's text for the symbols."""

    scale: float = 1.0
    softcap: float | None = None
    valid: int | None = None
    """Entries of the vocabulary that are real; the rest is padding and scores -inf."""
    ignore_index: int = -100
    z_loss: float = 0.0
    label_smoothing: float = 0.0


PLAIN = Head()


class Rows(NamedTuple):
    """Per row, in fp32 (fp64 for fp64 logits); zero where the target is ignored."""

    loss: Tensor
    nll: Tensor
    lse: Tensor
    correct: Tensor
    """1 where no entry scores higher than the target's."""


def cross_entropy_(
    logits_NV: Tensor,
    targets_N: Tensor,
    head: Head = PLAIN,
    *,
    bias: Tensor | None = None,
    weights_N: Tensor | None = None,
    grad: bool = True,
    impl: str | None = None,
) -> Rows:
    """Losses of rows of raw products, which are overwritten.

    Args:
        logits_NV: x W^T, rows contiguous. Afterwards d (sum of weights x loss) / d logits if ``grad``, else arbitrary.
        targets_N: int64.
        bias: (V,), added to the scaled products.
        weights_N: factor on each row's gradient (not on the returned losses); 1 by default.
        impl: see `slm_kernels.dispatch`.
    """
    return _op(impl, logits_NV, targets_N, head, bias, weights_N, grad)  # type: ignore[no-any-return]


def reference(logits_NV: Tensor, targets_N: Tensor, head: Head = PLAIN, bias: Tensor | None = None) -> Rows:
    """The same, differentiable, from torch's own operations: the oracle of the tests."""
    z_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) * head.scale
    if bias is not None:
        z_NV = z_NV + bias
    if head.softcap is not None:
        z_NV = head.softcap * (z_NV / head.softcap).tanh()
    z_NV = z_NV[:, : head.valid]
    counted_N = targets_N != head.ignore_index
    y_N1 = targets_N.where(counted_N, 0)[:, None]
    lse_N, target_N = z_NV.logsumexp(-1), z_NV.gather(1, y_N1)[:, 0]
    nll_N = lse_N - target_N
    loss_N = lse_N - (1 - head.label_smoothing) * target_N + head.z_loss * lse_N.square()
    if head.label_smoothing:
        loss_N = loss_N - head.label_smoothing * z_NV.mean(-1)
    correct_N = (target_N >= z_NV.amax(-1)) & counted_N
    return Rows(
        loss_N.where(counted_N, 0.0), nll_N.where(counted_N, 0.0), lse_N.where(counted_N, 0.0), correct_N.to(z_NV.dtype)
    )


# In plain torch.


def in_place(
    logits_NV: Tensor, targets_N: Tensor, head: Head, bias: Tensor | None, weights_N: Tensor | None, grad: bool
) -> Rows:
    """See `cross_entropy_`. A few rows at a time, so that a CPU finds them in its cache in every pass."""
    budget = CPU_BLOCK_BYTES if logits_NV.device.type == "cpu" else BLOCK_BYTES
    rows = max(1, budget // (4 * logits_NV.shape[1]))
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    out_4N = logits_NV.new_empty(4, logits_NV.shape[0], dtype=wide)
    bias = None if bias is None else bias.to(wide)
    for start in range(0, logits_NV.shape[0], rows):
        block = slice(start, start + rows)
        weights_B = None if weights_N is None else weights_N[block]
        _block_in_place(logits_NV[block], targets_N[block], head, bias, weights_B, grad, out_4N[:, block])
    return Rows(*out_4N)


def _block_in_place(
    logits_BV: Tensor,
    targets_B: Tensor,
    head: Head,
    bias: Tensor | None,
    weights_B: Tensor | None,
    grad: bool,
    out_4B: Tensor,
) -> None:
    z_BV = logits_BV.to(out_4B.dtype)  # the same memory where the logits are fp32
    real_BV = z_BV[:, : head.valid]
    if head.scale != 1.0:
        real_BV.mul_(head.scale)
    if bias is not None:
        real_BV.add_(bias[: head.valid])
    slope_BV = None
    if head.softcap is not None:
        tanh_BV = real_BV.div_(head.softcap).tanh_()
        slope_BV = 1 - tanh_BV.square() if grad else None
        real_BV.mul_(head.softcap)
    counted_B = targets_B != head.ignore_index
    y_B1 = targets_B.where(counted_B, 0)[:, None]
    target_B = z_BV.gather(1, y_B1)[:, 0]
    mean_B = real_BV.mean(-1) if head.label_smoothing else 0.0
    top_B = real_BV.amax(-1)
    total_B = real_BV.sub_(top_B[:, None]).exp_().sum(-1)
    lse_B = top_B + total_B.log()
    e = head.label_smoothing
    smooth_B = lse_B - (1 - e) * target_B - e * mean_B
    rows = torch.stack(
        [smooth_B + head.z_loss * lse_B.square(), lse_B - target_B, lse_B, (target_B >= top_B).to(lse_B)]
    )
    out_4B.copy_(torch.where(counted_B, rows, 0.0))
    if not grad:
        return
    factor_B = counted_B.to(lse_B) * head.scale
    if weights_B is not None:
        factor_B = factor_B * weights_B
    real_BV.mul_((factor_B * (1 + 2 * head.z_loss * lse_B) / total_B)[:, None])
    if e:
        real_BV.sub_((factor_B * (e / real_BV.shape[1]))[:, None])
    real_BV.scatter_add_(1, y_B1, (factor_B * (e - 1))[:, None])
    if slope_BV is not None:
        real_BV.mul_(slope_BV)
    if head.valid is not None:
        z_BV[:, head.valid :] = 0
    if z_BV.dtype != logits_BV.dtype:
        logits_BV.copy_(z_BV)


# In Triton.


@triton.jit
def _score(u, cols, valid, cap, HAS_CAP: tl.constexpr):
    """Logits of scaled products, -inf past the valid ones."""
    if HAS_CAP:
        u = cap * (2 * tl.sigmoid(2 * u / cap) - 1)
    return tl.where(cols < valid, u, float("-inf"))


@triton.jit
def _rows_kernel(
    logits_ptr,
    targets_ptr,
    bias_ptr,
    weights_ptr,
    out_ptr,
    stride,
    N,
    V,
    valid,
    ignore_index,
    scale,
    cap,
    z_loss,
    smoothing,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    SMOOTH: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    scale, cap, z_loss, smoothing = f32(scale), f32(cap), f32(z_loss), f32(smoothing)
    row_ptr = logits_ptr + row * stride
    y = tl.load(targets_ptr + row)
    o_v = tl.arange(0, BLOCK)
    if y == ignore_index:
        for slot in tl.static_range(4):
            tl.store(out_ptr + slot * N + row, 0.0)
        if GRAD:
            for start in range(0, V, BLOCK):
                tl.store(row_ptr + start + o_v, tl.zeros((BLOCK,), tl.float32), mask=start + o_v < V)
        return
    top, total = -3.0e38, 0.0  # finite: -inf - -inf would be NaN
    b_target = tl.zeros((BLOCK,), tl.float32)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, valid, BLOCK):
        cols = start + o_v
        # Masked by V, not by valid: V is a multiple of 16 where somebody cared, and only then are loads wide.
        u = tl.load(row_ptr + cols, mask=cols < V, other=0.0, eviction_policy="evict_last").to(tl.float32) * scale
        if HAS_BIAS:
            u += tl.load(bias_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
        z = _score(u, cols, valid, cap, HAS_CAP)
        higher = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
        top = higher
        b_target += tl.where(cols == y, z, 0.0)
        if SMOOTH:
            b_sum += tl.where(cols < valid, z, 0.0)
    lse = top + tl.log(total)
    target = tl.sum(b_target, 0)
    loss = lse - (1 - smoothing) * target + z_loss * lse * lse
    if SMOOTH:
        loss -= smoothing / valid * tl.sum(b_sum, 0)
    tl.store(out_ptr + row, loss)
    tl.store(out_ptr + N + row, lse - target)
    tl.store(out_ptr + 2 * N + row, lse)
    tl.store(out_ptr + 3 * N + row, tl.where(target >= top, 1.0, 0.0))
    if GRAD:
        weight = scale
        if HAS_WEIGHTS:
            weight *= tl.load(weights_ptr + row).to(tl.float32)
        for start in range(0, V, BLOCK):
            cols = start + o_v
            u = tl.load(row_ptr + cols, mask=cols < V, other=0.0, eviction_policy="evict_first").to(tl.float32) * scale
            if HAS_BIAS:
                u += tl.load(bias_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
            p = tl.exp(_score(u, cols, valid, cap, HAS_CAP) - lse)
            g = (1 + 2 * z_loss * lse) * p - tl.where(cols == y, 1 - smoothing, 0.0)
            if SMOOTH:
                g -= smoothing / valid
            if HAS_CAP:
                half = tl.sigmoid(2 * u / cap)
                g *= 4 * half * (1 - half)  # 1 - tanh^2
            tl.store(row_ptr + cols, tl.where(cols < valid, g * weight, 0.0), mask=cols < V)


def default_config(V: int) -> Config:
    """One row is at most so many numbers at a time; about 16 numbers per thread."""
    block = min(next_power_of_2(V), 8192)
    return Config(block, max(1, min(16, block // 512)))


def in_place_triton(
    logits_NV: Tensor, targets_N: Tensor, head: Head, bias: Tensor | None, weights_N: Tensor | None, grad: bool
) -> Rows:
    """See `cross_entropy_`."""
    N, V = logits_NV.shape
    out_4N = logits_NV.new_empty(4, N, dtype=torch.float32)
    if N == 0:
        return Rows(*out_4N)
    targets_N = targets_N.contiguous()
    bias = None if bias is None else bias.contiguous()
    weights_N = None if weights_N is None else weights_N.contiguous()

    def launch(config: Config, at_NV: Tensor) -> None:
        _rows_kernel[(N,)](
            at_NV,
            targets_N,
            bias,
            weights_N,
            out_4N,
            at_NV.stride(0),
            N,
            V,
            V if head.valid is None else head.valid,
            head.ignore_index,
            head.scale,
            head.softcap or 1.0,
            head.z_loss,
            head.label_smoothing,
            HAS_BIAS=bias is not None,
            HAS_CAP=head.softcap is not None,
            HAS_WEIGHTS=weights_N is not None,
            SMOOTH=head.label_smoothing != 0,
            GRAD=grad,
            BLOCK=config.block,
            num_warps=config.warps,
        )

    candidates = [Config(block, warps) for block in (2048, 4096, 8192, 16384) for warps in (4, 8, 16)]
    key = (V, logits_NV.dtype, grad)
    launch(
        tuned("cross_entropy_", key, default_config(V), candidates, lambda c: launch(c, logits_NV.clone())), logits_NV
    )
    return Rows(*out_4N)


def _why_not(
    logits_NV: Tensor, targets_N: Tensor, head: Head, bias: Tensor | None, weights_N: Tensor | None, grad: bool
) -> str:
    if logits_NV.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"logits are {logits_NV.dtype}, the kernel computes in fp32"
    return "" if logits_NV.stride(-1) == 1 else "rows of logits are not contiguous"


_op = Op("cross_entropy_", in_place, in_place_triton, _why_not)
