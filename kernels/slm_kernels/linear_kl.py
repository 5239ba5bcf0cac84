"""Distillation from a teacher's output layer, without keeping either model's logits.

Per row, with temperature T, z = x W^T / T of the student (p = softmax z) and of the teacher (q, its z being given):

    forward   KL(q | p) = sum q (log q - log p)            dL/dz = p - q
    reverse   KL(p | q) = sum p (log p - log q)            dL/dz = p (log p - log q - L)
    jsd       b KL(q | m) + (1 - b) KL(p | m),             dL/dz = p (u - sum p u),
              m = b q + (1 - b) p                          u = (1 - b) (log p - log m)

For the last, dL/dp = -b (1 - b) q / m + (1 - b) (log(p / m) + 1 - (1 - b) p / m), where b q / m + (1 - b) p / m = 1 leaves
(1 - b) log(p / m). The gradient of a raw product is dL/dz / T; multiply the loss by T^2 if it is to keep its size when T
changes (Hinton et al.). Chunks of rows and what is kept are as in `linear_cross_entropy`; the teacher gets no gradient.

Sources: Hinton et al. 2015, arXiv 1503.02531; Agarwal et al. 2023 (generalised JSD), arXiv 2306.13649.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from slm_kernels._op import Differentiable
from slm_kernels._triton import f32, next_power_of_2, tl, triton
from slm_kernels.dispatch import Op
from slm_kernels.linear_cross_entropy import chunk_rows
from slm_kernels.matmul import add_product_, no_autocast, product_dtype
from slm_kernels.tuning import Config, tuned

Kind = Literal["forward", "reverse", "jsd"]
TEMPORARIES: dict[Kind, int] = {"forward": 6, "reverse": 5, "jsd": 8}
"""Of a chunk's size, alive at once in `in_place`: log-probabilities, probabilities, and a product in the making."""


def linear_kl(
    x_ND: Tensor,
    weight_VD: Tensor,
    teacher_x_NE: Tensor,
    teacher_weight_VE: Tensor,
    *,
    kind: Kind = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    weights_N: Tensor | None = None,
    valid: int | None = None,
    chunk_bytes: int | None = None,
    impl: str | None = None,
) -> Tensor:
    """Sum over rows of the divergence between teacher and student, in nats. fp32 (fp64 for fp64 inputs).

    Args:
        x_ND, weight_VD: the student's hidden states and output embedding.
        teacher_x_NE, teacher_weight_VE: the teacher's, of any width, over the same vocabulary.
        kind: see the module's text; ``beta`` is jsd's b, strictly between 0 and 1.
        weights_N: factor on each row, 0 for rows that don't count; no gradient.
        valid: entries of the vocabulary that are real.
        chunk_bytes: memory for the student's logits of one chunk of rows; the teacher's take as much again.
        impl: see `slm_kernels.dispatch`.

    Raises:
        ValueError: shapes don't fit together, or a number is out of range.
    """
    N, V = x_ND.shape[0], weight_VD.shape[0]
    if kind not in ("forward", "reverse", "jsd"):
        raise ValueError(f"kind={kind!r} is not one of forward, reverse, jsd")
    if teacher_x_NE.shape[0] != N or teacher_weight_VE.shape[0] != V:
        raise ValueError(
            f"the teacher must have the student's {N} rows and {V} tokens, got {teacher_x_NE.shape[0]} and "
            f"{teacher_weight_VE.shape[0]}"
        )
    if temperature <= 0 or not 0 < beta < 1:
        raise ValueError(f"temperature={temperature} must be positive and beta={beta} between 0 and 1")
    if weights_N is not None and weights_N.shape != (N,):
        raise ValueError(f"weights must be ({N},), got {tuple(weights_N.shape)}")
    options = (kind, temperature, beta, valid or V, chunk_bytes)
    return _op(impl, x_ND, weight_VD, teacher_x_NE, teacher_weight_VE, weights_N, *options)  # type: ignore[no-any-return]


def reference(
    x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor, weights: Tensor | None = None,
    kind: Kind = "forward", temperature: float = 1.0, beta: float = 0.5, valid: int | None = None,
) -> Tensor:  # fmt: skip
    """The same from torch's own operations."""
    wide = torch.promote_types(x.dtype, torch.float32)
    logp, logq = (
        ((a @ b.mT).to(wide) / temperature)[:, :valid].log_softmax(-1)
        for a, b in ((x, weight), (teacher_x, teacher_weight))
    )
    logq = logq.detach()
    p, q = logp.exp(), logq.exp()
    if kind == "forward":
        rows = (q * (logq - logp)).sum(-1)
    elif kind == "reverse":
        rows = (p * (logp - logq)).sum(-1)
    else:
        logm = _mixed(logq, logp, beta)
        rows = (beta * q * (logq - logm) + (1 - beta) * p * (logp - logm)).sum(-1)
    return rows.sum() if weights is None else (rows * weights).sum()


def _mixed(logq: Tensor, logp: Tensor, beta: float) -> Tensor:
    """log(b q + (1 - b) p), also where both are too small for a number."""
    return torch.logaddexp(logq + math.log(beta), logp + math.log(1 - beta))


def in_place(
    student_CV: Tensor, teacher_CV: Tensor, weights_C: Tensor, kind: str, temperature: float, beta: float, valid: int
) -> Tensor:
    """Losses of rows of raw products; the student's become gradients of weights x loss, the teacher's are destroyed."""
    wide = weights_C.dtype
    z = student_CV.to(wide)
    logp = (z[:, :valid] / temperature).log_softmax(-1)
    logq = (teacher_CV[:, :valid].to(wide) / temperature).log_softmax(-1)
    p = logp.exp()
    if kind == "forward":
        q = logq.exp()
        rows_C = (q * (logq - logp)).sum(-1)
        grad = p.sub_(q)
    elif kind == "reverse":
        difference = logp - logq
        rows_C = (p * difference).sum(-1)
        grad = difference.sub_(rows_C[:, None]).mul_(p)
    else:
        q = logq.exp()
        logm = _mixed(logq, logp, beta)
        u = (logp - logm).mul_(1 - beta)
        dot_C = (p * u).sum(-1)
        rows_C = dot_C + beta * (q * (logq - logm)).sum(-1)
        grad = u.sub_(dot_C[:, None]).mul_(p)
    student_CV[:, valid:] = 0
    student_CV[:, :valid] = grad.mul_((weights_C / temperature)[:, None])
    return rows_C


@triton.jit
def _terms(zs, zt, lse_s, lse_t, mask, beta, KIND: tl.constexpr):
    """p, what a row's loss sums, and u of the module's text, per entry."""
    logp, logq = zs - lse_s, zt - lse_t
    p, q = tl.where(mask, tl.exp(logp), 0.0), tl.where(mask, tl.exp(logq), 0.0)
    if KIND == "forward":
        return p, tl.where(mask, q * (logq - logp), 0.0), q
    elif KIND == "reverse":
        u = logp - logq
        return p, tl.where(mask, p * u, 0.0), u
    else:
        logm = tl.log(beta * q + (1 - beta) * p + 1e-38)
        u = (1 - beta) * (logp - logm)
        return p, tl.where(mask, beta * q * (logq - logm) + p * u, 0.0), u


@triton.jit
def _rows_kernel(
    s_ptr,
    t_ptr,
    weights_ptr,
    loss_ptr,
    s_stride,
    t_stride,
    V,
    valid,
    temperature,
    beta,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program: both log-sum-exps, then the loss and sum p u, then the gradient over the student's logits."""
    row = tl.program_id(0).to(tl.int64)
    cold, beta = 1 / f32(temperature), f32(beta)
    o_v = tl.arange(0, BLOCK)
    p_s, p_t = s_ptr + row * s_stride, t_ptr + row * t_stride
    top_s, top_t, sum_s, sum_t = -3.0e38, -3.0e38, 0.0, 0.0
    for start in range(0, valid, BLOCK):
        cols = start + o_v
        mask = cols < valid
        zs = tl.load(p_s + cols, mask=cols < V, other=0.0, eviction_policy="evict_last").to(tl.float32) * cold
        zt = tl.load(p_t + cols, mask=cols < V, other=0.0, eviction_policy="evict_last").to(tl.float32) * cold
        zs, zt = tl.where(mask, zs, float("-inf")), tl.where(mask, zt, float("-inf"))
        high_s, high_t = tl.maximum(top_s, tl.max(zs, 0)), tl.maximum(top_t, tl.max(zt, 0))
        sum_s = sum_s * tl.exp(top_s - high_s) + tl.sum(tl.exp(zs - high_s), 0)
        sum_t = sum_t * tl.exp(top_t - high_t) + tl.sum(tl.exp(zt - high_t), 0)
        top_s, top_t = high_s, high_t
    lse_s, lse_t = top_s + tl.log(sum_s), top_t + tl.log(sum_t)
    b_loss, b_dot = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, valid, BLOCK):
        cols = start + o_v
        zs = tl.load(p_s + cols, mask=cols < V, other=0.0, eviction_policy="evict_last").to(tl.float32) * cold
        zt = tl.load(p_t + cols, mask=cols < V, other=0.0, eviction_policy="evict_last").to(tl.float32) * cold
        p, term, u = _terms(zs, zt, lse_s, lse_t, cols < valid, beta, KIND)
        b_loss += term
        b_dot += tl.where(cols < valid, p * u, 0.0)
    dot = tl.sum(b_dot, 0)
    tl.store(loss_ptr + row, tl.sum(b_loss, 0))
    weight = tl.load(weights_ptr + row) * cold
    for start in range(0, V, BLOCK):
        cols = start + o_v
        mask = cols < valid
        zs = tl.load(p_s + cols, mask=cols < V, other=0.0, eviction_policy="evict_first").to(tl.float32) * cold
        zt = tl.load(p_t + cols, mask=cols < V, other=0.0, eviction_policy="evict_first").to(tl.float32) * cold
        p, _, u = _terms(zs, zt, lse_s, lse_t, mask, beta, KIND)
        g = p - u if KIND == "forward" else p * (u - dot)
        tl.store(p_s + cols, tl.where(mask, g * weight, 0.0), mask=cols < V)


def default_config(V: int) -> Config:
    """Numbers of both rows at a time."""
    block = min(next_power_of_2(V), 4096)
    return Config(block, max(1, min(16, block // 256)))


def in_place_triton(
    student_CV: Tensor, teacher_CV: Tensor, weights_C: Tensor, kind: str, temperature: float, beta: float, valid: int
) -> Tensor:
    """See `in_place`."""
    C, V = student_CV.shape
    loss_C = weights_C.new_empty(C)

    def launch(config: Config, at_CV: Tensor) -> None:
        _rows_kernel[(C,)](
            at_CV, teacher_CV, weights_C, loss_C, at_CV.stride(0), teacher_CV.stride(0), V, valid, temperature, beta,
            KIND=kind, BLOCK=config.block, num_warps=config.warps,
        )  # fmt: skip

    candidates = [Config(block, warps) for block in (2048, 4096, 8192) for warps in (8, 16)]
    key = (V, student_CV.dtype, kind)
    launch(tuned("linear_kl", key, default_config(V), candidates, lambda c: launch(c, student_CV.clone())), student_CV)
    return loss_C


def workspace_bytes(N: int, V: int, D: int, E: int, kind: Kind, dtype: torch.dtype, device: str) -> int:
    """As `slm_kernels.linear_cross_entropy.workspace_bytes`; E: the width of the teacher's head. On a GPU rows become losses and gradients
    in their two buffers; torch's operations have `TEMPORARIES` more of them, in fp32."""
    rows = min(N, chunk_rows(N, V * dtype.itemsize, None, device))
    cast = 0 if dtype == torch.float32 else V * (D + E) * dtype.itemsize
    return rows * V * (2 * dtype.itemsize + (0 if device == "cuda" else 4 * TEMPORARIES[kind])) + cast


def _forward(
    x: Tensor,
    weight: Tensor,
    teacher_x: Tensor,
    teacher_weight: Tensor,
    weights: Tensor | None,
    kind: str,
    temperature: float,
    beta: float,
    valid: int,
    rows: int,
    dtype: torch.dtype,
    impl: str,
    want_x: bool,
    want_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of losses and its gradients."""
    with no_autocast(x):
        wide = torch.promote_types(dtype, torch.float32)
        N, V = x.shape[0], weight.shape[0]
        w_VD, tw_VE = weight.to(dtype), teacher_weight.to(dtype)
        factor_N = x.new_ones(N, dtype=wide) if weights is None else weights.to(wide)
        dx = torch.empty_like(x) if want_x else x.new_empty(0)
        dw = x.new_zeros(weight.shape, dtype=wide) if want_w else x.new_empty(0, dtype=wide)
        student_CV, teacher_CV = x.new_empty(min(rows, N), V, dtype=dtype), x.new_empty(min(rows, N), V, dtype=dtype)
        loss = x.new_zeros((), dtype=wide)
        for start in range(0, N, rows):
            block = slice(start, min(start + rows, N))
            x_CD, C = x[block].to(dtype), min(start + rows, N) - start
            s_CV = torch.mm(x_CD, w_VD.mT, out=student_CV[:C])
            t_CV = torch.mm(teacher_x[block].to(dtype), tw_VE.mT, out=teacher_CV[:C])
            run = in_place_triton if impl == "triton" else in_place
            rows_C = run(s_CV, t_CV, factor_N[block], kind, temperature, beta, valid)
            loss += (rows_C * factor_N[block]).sum()
            if want_x:
                dx[block] = s_CV @ w_VD
            if want_w:
                add_product_(dw, s_CV.mT, x_CD)
        return loss, dx, dw


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype, _, want_x, want_w = rest[-4:]
    wide = torch.promote_types(dtype, torch.float32)
    dx = torch.empty_like(x) if want_x else x.new_empty(0)
    return x.new_empty((), dtype=wide), dx, x.new_empty(weight.shape if want_w else (0,), dtype=wide)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.wants, ctx.dtype = inputs[-2:], inputs[1].dtype
    ctx.save_for_backward(*output[1:])


def _backward(launch: None, ctx: Any, upstream: Tensor | None, *rest: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 14
    dx, dw = ctx.saved_tensors
    dx = dx * upstream.to(dx.dtype) if ctx.wants[0] else None
    dw = (dw * upstream.to(dw.dtype)).to(ctx.dtype) if ctx.wants[1] else None
    return (dx, dw, *[None] * 12)


_function = Differentiable("linear_kl", _forward, fake=_fake, setup=_setup, backward=_backward)


def _apply(impl: str, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    *tensors_and_options, chunk_bytes = rest
    dtype = product_dtype(x)
    rows = chunk_rows(x.shape[0], weight.shape[0] * dtype.itemsize, chunk_bytes, x.device.type)
    wants = [torch.is_grad_enabled() and t.requires_grad for t in (x, weight)]
    return _function(x, weight, *tensors_and_options, rows, dtype, impl, *wants)[0]  # type: ignore[no-any-return]


def _torch(*args: Any) -> Tensor:
    return _apply("torch", *args)


def _triton(*args: Any) -> Tensor:
    return _apply("triton", *args)


def _why_not(x_ND: Tensor, *rest: Any) -> str:
    return "" if product_dtype(x_ND) != torch.float64 else "inputs are fp64, the kernel computes in fp32"


_op = Op("linear_kl", _torch, _triton, _why_not)
