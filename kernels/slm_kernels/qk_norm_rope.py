"""Norm and rotation of queries and keys, in one pass over both.

Per head of width K, of which the first R numbers are rotated by the token's position; a gain w and ``offset`` o per number:

    r = 1 / sqrt(mean(x^2) + eps),   n = x r,   a = n (w + o)          (a = x without a norm)
    y_1 = a_1 cos - a_2 sin,   y_2 = a_2 cos + a_1 sin                 for each pair (a_1, a_2); the rest of a is kept

Pairs are (i, i + R/2), or (2i, 2i + 1) if ``interleaved``. The rotation is linear: its gradient is its transpose,

    da_1 = dy_1 cos + dy_2 sin,   da_2 = dy_2 cos - dy_1 sin

and with g = da (w + o), as in `rms_norm`,

    dx = r (g - n mean(g n)),   dw = sum over tokens (and heads that share w) of da n

A program treats a few heads of a few tokens, so that cosines and sines are read once for several heads. Queries and keys
may be views of a larger tensor: strides are followed, only numbers within a head must be adjacent. The kernels are in
`_rotation_kernels`.

Sources: Su et al. 2021 (RoPE), arXiv 2104.09864; Dehghani et al. 2023 (QK norm), arXiv 2302.05442.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm_kernels import _rotation_kernels as kernels
from slm_kernels._op import Differentiable
from slm_kernels._rows import programs
from slm_kernels._triton import next_power_of_2, triton
from slm_kernels.dispatch import Op
from slm_kernels.tuning import Config, tuned

MAX_HEAD = 1024
HEADS = 4
"""Heads that a program treats at a time."""


def qk_norm_rope(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    cos_BTR: Tensor,
    sin_BTR: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    *,
    eps: float | None = None,
    offset: float = 0.0,
    interleaved: bool = False,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys, normalised per head if ``eps`` is given, then rotated. Returns contiguous (B, T, heads, K).

    Args:
        q_BTHK, k_BTGK: any strides; not modified.
        cos_BTR, sin_BTR: (B or 1, T, R/2), fp32; R is at most K. No gradient. A factor on both is allowed (YaRN).
        q_weight, k_weight: gains, (K,) for all heads or (heads, K); both or none, and only with a norm.
        eps: added to the mean square; None for no norm.
        offset: added to the gains.
        interleaved: rotate neighbours (GPT-J) instead of halves (GPT-NeoX, Llama).
        impl: see `slm_kernels.dispatch`.

    Raises:
        ValueError: shapes don't fit together.
    """
    _check(q_BTHK, k_BTGK, cos_BTR, sin_BTR, q_weight, k_weight, eps)
    return _op(impl, q_BTHK, k_BTGK, cos_BTR, sin_BTR, q_weight, k_weight, eps, offset, interleaved)  # type: ignore[no-any-return]


def _check(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float | None,
) -> None:
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must be (B, T, heads, K), got {tuple(q.shape)} and {tuple(k.shape)}")
    B, T, _, K = q.shape
    if cos.shape != sin.shape or cos.ndim != 3 or cos.shape[0] not in (1, B) or cos.shape[1] != T:
        raise ValueError(f"cos and sin must be (1 or {B}, {T}, R/2), got {tuple(cos.shape)} and {tuple(sin.shape)}")
    if not 0 < 2 * cos.shape[2] <= K:
        raise ValueError(f"cos and sin turn {2 * cos.shape[2]} numbers, heads have {K}")
    if (q_weight is None) != (k_weight is None) or (q_weight is not None and eps is None):
        raise ValueError("gains come for both q and k or for none, and only with eps, which asks for a norm")
    for name, weight, x in (("q_weight", q_weight, q), ("k_weight", k_weight, k)):
        if weight is not None and weight.shape not in ((K,), (x.shape[2], K)):
            raise ValueError(f"{name} must be ({K},) or ({x.shape[2]}, {K}), got {tuple(weight.shape)}")


def reference(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float | None = None,
    offset: float = 0.0,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same from torch's own operations."""

    def one(x: Tensor, weight: Tensor | None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        a, half = x.to(wide), cos.shape[-1]
        if eps is not None:
            a = F.rms_norm(a, (a.shape[-1],), None, eps)
        if weight is not None:
            a = a * (weight.to(wide) + offset)
        c, s = cos.to(wide)[:, :, None], sin.to(wide)[:, :, None]
        turned, rest = a.split((2 * half, a.shape[-1] - 2 * half), -1)
        a1, a2 = turned.unflatten(-1, (half, 2)).unbind(-1) if interleaved else turned.chunk(2, -1)
        pair = (a1 * c - a2 * s, a2 * c + a1 * s)
        turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        return torch.cat((turned, rest), -1).to(x.dtype)

    return one(q, q_weight), one(k, k_weight)


def default_config(K: int, back: bool) -> Config:
    """Tokens per program: about 16 numbers per thread of 4 warps, half as many on the way back."""
    tokens = 2048 // (HEADS * next_power_of_2(K)) // (2 if back else 1)
    return Config(max(1, min(8, tokens)), 4)


CANDIDATES = [Config(tokens, warps) for tokens in (1, 2, 4, 8) for warps in (2, 4, 8)]


def _shape(q: Tensor, k: Tensor, cos: Tensor, q_weight: Tensor | None, eps: float | None, interleaved: bool) -> Any:
    """What both kernels are told about sizes, and the compile-time choices."""
    B, T, H, K = q.shape
    half = cos.shape[-1]
    constants = {
        "NORM": eps is not None,
        "HAS_WEIGHT": q_weight is not None,
        "INTERLEAVED": interleaved,
        "HEADS": HEADS,
        "HALF": next_power_of_2(half),
        "REST": next_power_of_2(K - 2 * half) if 2 * half < K else 0,
    }
    blocks = -(-H // HEADS) + -(-k.shape[2] // HEADS)
    return (H, k.shape[2], B * T, T, K, half), constants, blocks


def _head_stride(weight: Tensor | None) -> int:
    return 0 if weight is None or weight.ndim == 1 else weight.stride(0)


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float | None,
    offset: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    q, k, cos, sin = _adjacent(q), _adjacent(k), cos.contiguous(), sin.contiguous()
    out_q, out_k = q.new_empty(q.shape), k.new_empty(k.shape)
    sizes, constants, blocks = _shape(q, k, cos, q_weight, eps, interleaved)
    _, _, N, _, K, half = sizes
    if N == 0:
        return out_q, out_k
    cos_sb = 0 if cos.shape[0] == 1 else cos.stride(0)

    def launch(config: Config) -> None:
        kernels.forward_kernel[(triton.cdiv(N, config.block), blocks)](
            q, k, q_weight, k_weight, out_q, out_k, cos, sin, *q.stride()[:3], *k.stride()[:3], cos_sb,
            _head_stride(q_weight), _head_stride(k_weight), *sizes, eps or 0.0, offset, **constants,
            TOKENS=config.block, num_warps=config.warps,
        )  # fmt: skip

    key = (K, half, q.dtype, eps is not None)
    launch(tuned("qk_norm_rope", key, default_config(K, False), CANDIDATES, launch))
    return out_q, out_k


def _fake(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, cos, sin, q_weight, k_weight, *options = inputs
    normed = options[0] is not None
    # Without a norm only the tables are needed; the empty tensors stand for q and k.
    kept = (q, k) if normed else (q.new_empty(0), k.new_empty(0))
    ctx.save_for_backward(*kept, cos, sin, q_weight, k_weight)
    ctx.shapes, ctx.options = (q.shape, k.shape), options


def _backward(launch: Any, ctx: Any, dyq: Tensor | None, dyk: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, cos, sin, q_weight, k_weight = ctx.saved_tensors
    dyq = q.new_zeros(ctx.shapes[0]) if dyq is None else dyq
    dyk = k.new_zeros(ctx.shapes[1]) if dyk is None else dyk
    dq, dk, dqw, dkw = launch(dyq, dyk, q, k, cos, sin, q_weight, k_weight, *ctx.options)
    weights = (dqw, dkw) if q_weight is not None else (None, None)
    return dq, dk, None, None, *weights, None, None, None


def _launch_backward(
    dyq: Tensor,
    dyk: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float | None,
    offset: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk and the gradients of the gains (empty without)."""
    dyq, dyk, cos, sin = _adjacent(dyq), _adjacent(dyk), cos.contiguous(), sin.contiguous()
    q, k = (_adjacent(q), _adjacent(k)) if eps is not None else (dyq, dyk)  # in the second case never read
    dq, dk = q.new_empty(dyq.shape), k.new_empty(dyk.shape)
    sizes, constants, blocks = _shape(dyq, dyk, cos, q_weight, eps, interleaved)
    H, G, N, _, K, half = sizes
    none = q.new_empty(0)
    if N == 0:
        return dq, dk, *(none.clone() if w is None else torch.zeros_like(w) for w in (q_weight, k_weight))  # type: ignore[return-value]
    cos_sb = 0 if cos.shape[0] == 1 else cos.stride(0)

    def launch(config: Config) -> tuple[Tensor, Tensor]:
        P, tiles = programs(N, config.block, q.device, per_processor=max(1, 8 // blocks))
        if q_weight is None:  # nothing to sum: one tile per program
            P, tiles = -(-N // config.block), 1
        dqw, dkw = (q.new_empty(0 if q_weight is None else P, heads, K, dtype=torch.float32) for heads in (H, G))
        kernels.backward_kernel[(P, blocks)](
            dyq, dyk, q, k, q_weight, k_weight, dq, dk, dqw, dkw, cos, sin, *dyq.stride()[:3], *dyk.stride()[:3],
            *q.stride()[:3], *k.stride()[:3], cos_sb, _head_stride(q_weight), _head_stride(k_weight), *sizes, tiles,
            eps or 0.0, offset, **constants, TOKENS=config.block, num_warps=config.warps,
        )  # fmt: skip
        return dqw, dkw

    key = (K, half, q.dtype, eps is not None)
    sums = launch(tuned("qk_norm_rope backward", key, default_config(K, True), CANDIDATES, launch))
    if q_weight is None or k_weight is None:
        return dq, dk, none, none.clone()
    totals = [s.sum(0) if w.ndim == 2 else s.flatten(0, 1).sum(0) for s, w in zip(sums, (q_weight, k_weight))]  # noqa: B905
    return dq, dk, totals[0].to(q_weight.dtype), totals[1].to(k_weight.dtype)


def _fake_backward(dyq: Tensor, dyk: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> Any:
    weights = [q.new_empty(0) if w is None else w.new_empty(w.shape) for w in rest[:2]]
    return dyq.new_empty(dyq.shape), dyk.new_empty(dyk.shape), *weights


_function = Differentiable(
    "qk_norm_rope",
    _forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    backward_launcher=_launch_backward,
    fake_backward=_fake_backward,
)


def _why_not(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> str:
    if torch.float64 in (q.dtype, k.dtype):
        return "inputs are fp64, the kernel computes in fp32"
    if q.dtype != k.dtype:
        return f"q is {q.dtype} and k {k.dtype}"
    return "" if q.shape[-1] <= MAX_HEAD else f"heads are {q.shape[-1]} wide, the kernel does up to {MAX_HEAD}"


_op = Op("qk_norm_rope", reference, _function, _why_not, fused_by_inductor=True)
