"""Linear layer and cross entropy in one, without keeping the logits.

For small models with large vocabularies the logits are the biggest tensor of the step: N x V, in fp32, and as much again
for their gradient. But the loss is a sum over rows, so it can be taken a chunk of C rows at a time. With
a = x W^T (C x V) and g = d loss / d a, which `cross_entropy_` writes over a,

    d loss / d x = g W       (C x D, one chunk's part of the result)
    d loss / d W = sum over chunks of g^T x     (V x D, summed in fp32)

Where a sum or mean is wanted, the forward pass computes both right away and keeps those instead of logits; the backward
pass multiplies them by the incoming scalar. Where every row's loss is wanted, their factors are not known yet: the
backward pass then computes each chunk's logits again (four products instead of three).

Chunks are as large as ``chunk_bytes`` allows: matrix products of few rows are slow (a chunk of 64 rows would read and write
all of d W for each of them). On a CPU the passes over a chunk's logits go a few rows at a time, through the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from slm_kernels._op import Differentiable
from slm_kernels.cross_entropy import Head, Rows, in_place, in_place_triton
from slm_kernels.cross_entropy import reference as rows_reference
from slm_kernels.dispatch import Op
from slm_kernels.linear_lse import never_stored
from slm_kernels.matmul import add_product_, no_autocast, product_dtype

CHUNK = {"cpu": (16 << 20, 256), "cuda": (512 << 20, 2048)}
"""Default size of a chunk by device: bytes of logits, or so many rows where those are more bytes."""
Reduction = Literal["sum", "mean", "none"]


@dataclass(frozen=True)
class Aux:
    """What a loss knows besides, per row and without gradient; zero where the target is ignored."""

    lse: Tensor
    """log sum exp of the row's logits, (N,)."""
    correct: Tensor
    """1 where no token scores higher than the target, (N,)."""
    count: Tensor
    """Rows that are not ignored, a scalar."""


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    valid: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "sum",
    chunk_bytes: int | None = None,
    aux: bool = False,
    impl: str | None = None,
) -> tuple[Any, ...]:
    """Cross entropy plus ``z_loss`` x lse^2 of ``targets`` under a linear layer, and the cross entropy alone.

    Args:
        x_ND: hidden states. Under autocast they are multiplied in autocast's dtype; sums are fp32.
        weight_VD: output embedding.
        targets_N: int64 ids; rows equal to ``ignore_index`` count nothing.
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, section 5).
        bias: (V,), added to the scaled products.
        logit_scale: factor on x W^T.
        softcap: logits become cap tanh(logit / cap) (Gemma 2, arXiv 2408.00118).
        valid: rows of ``weight_VD`` that are real; the others are padding and score -inf.
        label_smoothing: share of the target's probability that goes to all real entries alike.
        reduction: "sum" over rows, "mean" over rows that count (zero if none does), or "none".
        chunk_bytes: memory for the logits of one chunk of rows; by default `CHUNK`'s.
        aux: return an `Aux` as well.
        impl: see `slm_kernels.dispatch`.

    Returns:
        ``(loss, nll)`` or ``(loss, nll, aux)``: scalars, or (N,) without reduction; fp32 (fp64 for fp64 inputs). ``nll`` is
        the cross entropy without smoothing and z-loss; it carries no gradient.

    Raises:
        ValueError: shapes don't fit together, or there is no such reduction.
    """
    _check(x_ND, weight_VD, targets_N, bias, valid, reduction)
    head = Head(logit_scale, softcap, valid, ignore_index, z_loss, label_smoothing)
    return _op(impl, x_ND, weight_VD, targets_N, bias, head, reduction, chunk_bytes, aux)  # type: ignore[no-any-return]


def reference(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    valid: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "sum",
) -> tuple[Tensor, Tensor]:
    """The same from torch's own operations, with all logits in memory: the oracle of the tests."""
    head = Head(logit_scale, softcap, valid, ignore_index, z_loss, label_smoothing)
    rows = rows_reference(torch.nn.functional.linear(x_ND, weight_VD), targets_N, head, bias)
    return _reduced(rows.loss, rows.nll.detach(), (targets_N != ignore_index).sum(), reduction)


def _check(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, bias: Tensor | None, valid: int | None, reduction: str
) -> None:
    V = weight_VD.shape[0]
    if x_ND.ndim != 2 or weight_VD.ndim != 2 or x_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"x must be (N, D) and weight (V, D), got {tuple(x_ND.shape)} and {tuple(weight_VD.shape)}")
    if targets_N.shape != x_ND.shape[:1]:
        raise ValueError(f"targets must be ({x_ND.shape[0]},), one per row of x, got {tuple(targets_N.shape)}")
    if bias is not None and bias.shape != (V,):
        raise ValueError(f"bias must be ({V},), one per row of weight, got {tuple(bias.shape)}")
    if valid is not None and not 0 < valid <= V:
        raise ValueError(f"valid={valid} must be between 1 and the {V} rows of weight")
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction={reduction!r} is not one of sum, mean, none")


def _reduced(loss_N: Tensor, nll_N: Tensor, count: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    if reduction == "none":
        return loss_N, nll_N
    loss, nll = loss_N.sum(), nll_N.sum()
    return (loss / count.clamp(min=1), nll / count.clamp(min=1)) if reduction == "mean" else (loss, nll)


def _apply(
    impl: str,
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    bias: Tensor | None,
    head: Head,
    reduction: Reduction,
    chunk_bytes: int | None,
    aux: bool,
) -> tuple[Any, ...]:
    dtype = product_dtype(x_ND)
    rows = chunk_rows(x_ND.shape[0], weight_VD.shape[0] * dtype.itemsize, chunk_bytes, x_ND.device.type)
    # Asked here: inside of a Function gradients are always off, and its needs_input_grad doesn't know of no_grad.
    wants = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x_ND, weight_VD, bias)]
    if reduction == "none":
        loss_N, *rest = _per_row(x_ND, weight_VD, bias, targets_N, *head, rows, dtype, impl)
    else:
        loss_N, *rest = _summed(x_ND, weight_VD, bias, targets_N, *head, rows, dtype, impl, *wants)
    nll_N, lse_N, correct_N = (t.detach() for t in rest[:3])
    count = (targets_N != head.ignore_index).sum()
    if reduction == "none":
        loss, nll = loss_N, nll_N
    else:  # `_summed` gives the sum already
        loss, nll = loss_N, nll_N.sum()
        if reduction == "mean":
            loss, nll = loss / count.clamp(min=1), nll / count.clamp(min=1)
    return (loss, nll, Aux(lse_N, correct_N, count)) if aux else (loss, nll)


def chunk_rows(N: int, row_bytes: int, chunk_bytes: int | None, device: str) -> int:
    """Rows of logits to hold at a time: as many as fit, evenly spread, multiples of 128 where there is room; 16 at least."""
    budget, rows = CHUNK.get(device, CHUNK["cuda"])
    most = max(16, chunk_bytes // row_bytes if chunk_bytes else max(rows, budget // row_bytes))
    if most >= N:
        return max(1, N)
    even = -(-N // -(-N // most))
    step = 128 if most >= 256 else 16
    return min(most // step * step, -(-even // step) * step)


def workspace_bytes(N: int, V: int, D: int, dtype: torch.dtype, device: str) -> int:
    """Memory that a summed loss of fp32 weights holds while it runs, beyond what it returns: the buffer of one chunk, and the
    weights in ``dtype`` where that is another one (autocast doesn't reach into the operator, so they are cast there).

    ``device``: its type, as in `CHUNK`.
    """
    rows = min(N, chunk_rows(N, V * dtype.itemsize, None, device))
    cast = 0 if dtype == torch.float32 else V * D * dtype.itemsize
    return rows * V * dtype.itemsize + cast


class _Chunk(NamedTuple):
    block: slice
    x_CD: Tensor
    logits_CV: Tensor
    targets_C: Tensor


def _chunks(x_ND: Tensor, w_VD: Tensor, targets_N: Tensor, rows: int, dtype: torch.dtype) -> Any:
    """Chunks of rows with their raw products, all in one buffer."""
    N, V = x_ND.shape[0], w_VD.shape[0]
    buffer_CV = x_ND.new_empty(min(rows, N), V, dtype=dtype)
    for start in range(0, N, rows):
        block = slice(start, min(start + rows, N))
        x_CD = x_ND[block].to(dtype)
        logits_CV = torch.mm(x_CD, w_VD.mT, out=buffer_CV[: x_CD.shape[0]])
        yield _Chunk(block, x_CD, logits_CV, targets_N[block])


@dataclass
class _Grads:
    """Gradients in the making; empty tensors stand for those that nobody wants."""

    dx_ND: Tensor
    dw_VD: Tensor
    db_V: Tensor

    @staticmethod
    def like(x_ND: Tensor, weight_VD: Tensor, bias: Tensor | None, wide: torch.dtype, wants: list[bool]) -> "_Grads":
        none = x_ND.new_empty(0, dtype=wide)
        dw_VD = torch.zeros_like(weight_VD, dtype=wide, memory_format=torch.contiguous_format) if wants[1] else none
        db_V = none.new_zeros(weight_VD.shape[0]) if wants[2] else none.clone()
        return _Grads(torch.empty_like(x_ND) if wants[0] else x_ND.new_empty(0), dw_VD, db_V)

    def add(self, chunk: _Chunk, w_VD: Tensor, scale: float) -> None:
        g_CV = chunk.logits_CV
        if self.dx_ND.numel():
            self.dx_ND[chunk.block] = g_CV @ w_VD
        if self.dw_VD.numel():
            add_product_(self.dw_VD, g_CV.mT, chunk.x_CD)
        if self.db_V.numel():
            self.db_V += g_CV.sum(0, dtype=self.db_V.dtype) / scale


def _rows_of(chunk: _Chunk, head: Head, bias: Tensor | None, weights_C: Tensor | None, grad: bool, impl: str) -> Rows:
    rows = in_place_triton if impl == "triton" else in_place
    return rows(chunk.logits_CV, chunk.targets_C, head, bias, weights_C, grad)


def _from_lse(x_ND: Tensor, w_VD: Tensor, targets_N: Tensor, head: Head, bias: Tensor | None) -> Rows:
    """Losses without gradients and without logits."""
    lse_N, target_N, mean_N, top_N = never_stored(x_ND, w_VD, targets_N, head, bias)
    counted_N, e = targets_N != head.ignore_index, head.label_smoothing
    loss_N = lse_N - (1 - e) * target_N - e * mean_N + head.z_loss * lse_N.square()
    rows_4N = torch.stack([loss_N, lse_N - target_N, lse_N, (target_N >= top_N).to(lse_N)])
    return Rows(*(row.clone() for row in torch.where(counted_N, rows_4N, 0.0)))


def _sum_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    valid: int | None,
    ignore_index: int,
    z_loss: float,
    label_smoothing: float,
    rows: int,
    dtype: torch.dtype,
    impl: str,
    want_x: bool,
    want_w: bool,
    want_b: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of losses, (N,) nll, lse and correct, and the gradients of the sum."""
    head = Head(scale, softcap, valid, ignore_index, z_loss, label_smoothing)
    with no_autocast(x):
        wide = torch.promote_types(dtype, torch.float32)  # fp64 stays fp64
        if impl == "triton" and not (want_x or want_w or want_b):
            rows_ = _from_lse(x.to(dtype), weight.to(dtype), targets, head, bias)
            return rows_.loss.sum(), rows_.nll, rows_.lse, rows_.correct, *(x.new_empty(0, dtype=wide) for _ in "xwb")  # type: ignore[return-value]
        w_VD = weight.to(dtype)
        grads = _Grads.like(x, weight, bias, wide, [want_x, want_w, want_b])
        out_4N = x.new_empty(4, x.shape[0], dtype=wide)
        for chunk in _chunks(x, w_VD, targets, rows, dtype):
            out_4N[:, chunk.block] = torch.stack(_rows_of(chunk, head, bias, None, want_x or want_w or want_b, impl))
            grads.add(chunk, w_VD, scale)
        loss, nll, lse, correct = out_4N.unbind()
        # Copies: an operator's outputs must not share memory.
        return loss.sum(), nll.clone(), lse.clone(), correct.clone(), grads.dx_ND, grads.dw_VD, grads.db_V


def _sum_fake(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dtype, (want_x, want_w, want_b) = rest[7], rest[9:]
    wide = torch.promote_types(dtype, torch.float32)
    rows = [x.new_empty(x.shape[0], dtype=wide) for _ in range(3)]
    dx = torch.empty_like(x) if want_x else x.new_empty(0)
    dw = x.new_empty(weight.shape if want_w else (0,), dtype=wide)
    return x.new_empty((), dtype=wide), *rows, dx, dw, x.new_empty(weight.shape[0] if want_b else 0, dtype=wide)


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.wants = inputs[-3:]
    ctx.dtypes = [inputs[0].dtype, inputs[1].dtype, None if inputs[2] is None else inputs[2].dtype]
    ctx.save_for_backward(*output[4:])


def _sum_backward(launch: None, ctx: Any, upstream: Tensor | None, *rest: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 16
    scaled: list[Tensor | None] = []
    for saved, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, ctx.wants, strict=True):
        if not want:
            scaled.append(None)
        elif saved.device.type == "cpu" and not torch.compiler.is_compiling() and upstream.item() == 1:
            scaled.append(saved.to(dtype))  # looking is free on a CPU; an accelerator would have to be waited for
        else:
            scaled.append((saved * upstream.to(saved.dtype)).to(dtype))
    return (*scaled, *[None] * 13)


def _row_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    valid: int | None,
    ignore_index: int,
    z_loss: float,
    label_smoothing: float,
    rows: int,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N,) loss, nll, lse and correct."""
    head = Head(scale, softcap, valid, ignore_index, z_loss, label_smoothing)
    with no_autocast(x):
        out_4N = x.new_empty(4, x.shape[0], dtype=torch.promote_types(dtype, torch.float32))
        for chunk in _chunks(x, weight.to(dtype), targets, rows, dtype):
            out_4N[:, chunk.block] = torch.stack(_rows_of(chunk, head, bias, None, False, impl))
        return tuple(t.clone() for t in out_4N)  # type: ignore[return-value]


def _row_fake(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wide = torch.promote_types(rest[7], torch.float32)
    return tuple(x.new_empty(x.shape[0], dtype=wide) for _ in range(4))


def _row_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _row_backward(launch: Any, ctx: Any, upstream_N: Tensor | None, *rest: Any) -> tuple[Tensor | None, ...]:
    if upstream_N is None:
        return (None,) * 13
    x, weight, bias, targets = ctx.saved_tensors
    wants = [bool(n) and t is not None for n, t in zip(ctx.needs_input_grad, (x, weight, bias), strict=False)]
    grads = launch(upstream_N, x, weight, bias, targets, *ctx.options, *wants)
    return (*[g if want else None for g, want in zip(grads, wants, strict=True)], *[None] * 10)


def _row_backward_launch(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    valid: int | None,
    ignore_index: int,
    z_loss: float,
    label_smoothing: float,
    rows: int,
    dtype: torch.dtype,
    impl: str,
    want_x: bool,
    want_w: bool,
    want_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    head = Head(scale, softcap, valid, ignore_index, z_loss, label_smoothing)
    with no_autocast(x):
        wide, w_VD = torch.promote_types(dtype, torch.float32), weight.to(dtype)
        grads = _Grads.like(x, weight, bias, wide, [want_x, want_w, want_b])
        for chunk in _chunks(x, w_VD, targets, rows, dtype):
            _rows_of(chunk, head, bias, upstream[chunk.block], True, impl)
            grads.add(chunk, w_VD, scale)
        db_V = grads.db_V if bias is None else grads.db_V.to(bias.dtype)
        return grads.dx_ND, grads.dw_VD.to(weight.dtype), db_V


def _row_backward_fake(
    upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dtype, (want_x, want_w, want_b) = rest[7], rest[9:]
    dx = torch.empty_like(x) if want_x else x.new_empty(0)
    dw = weight.new_empty(weight.shape if want_w else (0,))
    b_dtype = torch.promote_types(dtype, torch.float32) if bias is None else bias.dtype
    return dx, dw, x.new_empty(weight.shape[0] if want_b else 0, dtype=b_dtype)


_summed = Differentiable("linear_cross_entropy", _sum_forward, fake=_sum_fake, setup=_sum_setup, backward=_sum_backward)
_per_row = Differentiable(
    "linear_cross_entropy_rows",
    _row_forward,
    fake=_row_fake,
    setup=_row_setup,
    backward=_row_backward,
    backward_launcher=_row_backward_launch,
    fake_backward=_row_backward_fake,
)


def _why_not(x_ND: Tensor, weight_VD: Tensor, *rest: Any) -> str:
    return "" if product_dtype(x_ND) != torch.float64 else "inputs are fp64, the kernel computes in fp32"


def _torch(*args: Any) -> tuple[Any, ...]:
    return _apply("torch", *args)


def _triton(*args: Any) -> tuple[Any, ...]:
    return _apply("triton", *args)


_op = Op("linear_cross_entropy", _torch, _triton, _why_not)
