"""Causal softmax attention with what fused kernels elsewhere leave out, written to be read: sinks, a cap, slopes, documents,
windows and values of another width than keys, together and with gradients. Not for speed: where SDPA, varlen or Flex can do
a call they are faster.

For query t of head h, keys s <= t of the same document at distance d = t - s < window:

    a = scale q k,   z = cap tanh(a / cap) - slope d          (z = a - slope d without a cap)
    l = log(sum_s exp z_s + exp sink),   p_s = exp(z_s - l),   o = sum_s p_s v_s

The sink is a key with a learned score and no value. With D = do . o (which is sum_s p_s dp_s), dp_s = do . v_s:

    dv_s = sum_t p_s do_t,   dz_s = p_s (dp_s - D),   da_s = dz_s (1 - tanh^2),   dq = scale sum_s da_s k_s,
    dk_s = scale sum_t da_s q_t,   dsink = -sum_t exp(sink - l) D

Three kernels: outputs with l; dk and dv, a block of keys per program; dq, a block of queries per program. Nothing of size
T x T is stored, and sums are in the same order in every run.

Differential attention (arXiv 2410.05258) is two such maps over values twice as wide, subtracted afterwards: pass v of width
2 K. Sources: Dao 2023 (FlashAttention-2), arXiv 2307.08691; gpt-oss for sinks; Gemma 2, arXiv 2408.00118, for the cap; Press
et al. 2021, arXiv 2108.12409, for slopes.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm_kernels._op import Differentiable
from slm_kernels._triton import f32, next_power_of_2, tl, triton
from slm_kernels.dispatch import Op

MAX_WIDTH = 256


def attention(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
    docs_BT: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Causal self-attention; G key/value heads serve H query heads in turn. Returns (B, H, T, V).

    Args:
        scale: factor on q k; 1 / sqrt(K) by default.
        window: keys that a query sees, itself included.
        softcap: scores become cap tanh(score / cap).
        sinks_H: score of a key without a value, per head.
        slopes_H: what a score loses per place of distance (ALiBi); no gradient.
        docs_BT: number of each place's document; a query sees its own document only.
        impl: see `slm_kernels.dispatch`.

    Raises:
        ValueError: shapes don't fit together.
    """
    B, H, T, K = q_BHTK.shape
    if k_BGTK.shape[0] != B or k_BGTK.shape[2:] != (T, K) or v_BGTV.shape[:3] != k_BGTK.shape[:3]:
        raise ValueError(
            f"q, k and v must be (B, H, T, K), (B, G, T, K) and (B, G, T, V), got {tuple(q_BHTK.shape)}, "
            f"{tuple(k_BGTK.shape)} and {tuple(v_BGTV.shape)}"
        )
    if H % k_BGTK.shape[1]:
        raise ValueError(f"{k_BGTK.shape[1]} key/value heads can't serve {H} query heads alike")
    for name, t, shape in (("sinks", sinks_H, (H,)), ("slopes", slopes_H, (H,)), ("docs", docs_BT, (B, T))):
        if t is not None and t.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(t.shape)}")
    options = (K**-0.5 if scale is None else scale, window, softcap)
    return _op(impl, q_BHTK, k_BGTK, v_BGTV, sinks_H, slopes_H, docs_BT, *options)  # type: ignore[no-any-return]


def reference(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None, slopes: Tensor | None = None,
    docs: Tensor | None = None, scale: float = 1.0, window: int | None = None, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """The same from torch's own operations, with all scores in memory."""
    H, T = q.shape[1:3]
    k, v = (t.repeat_interleave(H // t.shape[1], 1) for t in (k, v))
    wide = torch.promote_types(q.dtype, torch.float32)
    z = (q @ k.mT).to(wide) * scale
    if softcap is not None:
        z = softcap * (z / softcap).tanh()
    place = torch.arange(T, device=q.device)
    distance = place[:, None] - place[None, :]
    if slopes is not None:
        z = z - slopes.to(wide)[:, None, None] * distance
    seen = (distance >= 0) & (distance < (window or T))
    if docs is not None:
        seen = seen & (docs[:, None, :, None] == docs[:, None, None, :])
    z = z.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        z = torch.cat((z, sinks.to(wide)[None, :, None, None].expand(*z.shape[:3], 1)), -1)
    return z.softmax(-1)[..., :T].to(v.dtype) @ v


@triton.jit
def _load(ptr, rows, row_stride, T, width, PADDED: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of a (T, width) matrix, zero where there is none."""
    cols = tl.arange(0, PADDED)
    mask = (rows < T)[:, None] & (cols < width)[None, :]
    x = tl.load(ptr + rows.to(tl.int64)[:, None] * row_stride + cols[None, :], mask=mask, other=0.0)
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def _scores(
    q, k, i_t, i_s, docs_ptr, row, T, scale, cap, slope, window,
    HAS_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_DOCS: tl.constexpr,
):  # fmt: skip
    """z for queries i_t and keys i_s, -inf where unseen, and d z / d a."""
    z = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    slope_z = tl.full(z.shape, 1.0, tl.float32)
    if HAS_CAP:
        half = tl.sigmoid(2 * z / cap)
        z = cap * (2 * half - 1)
        slope_z = 4 * half * (1 - half)
    distance = i_t[:, None] - i_s[None, :]
    if HAS_SLOPES:
        z -= slope * distance.to(tl.float32)
    seen = (distance >= 0) & (distance < window) & (i_t < T)[:, None]
    if HAS_DOCS:
        doc_t = tl.load(docs_ptr + row + i_t, mask=i_t < T, other=-1)
        doc_s = tl.load(docs_ptr + row + i_s, mask=i_s < T, other=-2)
        seen = seen & (doc_t[:, None] == doc_s[None, :])
    return tl.where(seen, z, float("-inf")), slope_z


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, sinks_ptr, slopes_ptr, docs_ptr, o_ptr, lse_ptr, H, G, T, K, V, scale, window, cap,
    HAS_CAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_DOCS: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """BLOCK queries of one head."""
    first, i_bh = tl.program_id(0) * BLOCK, tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    i_bg = i_b * G + i_h // (H // G)
    i_t = first + tl.arange(0, BLOCK)
    scale, cap, slope = f32(scale), f32(cap), 0.0
    if HAS_SLOPES:
        slope = tl.load(slopes_ptr + i_h).to(tl.float32)
    q = _load(q_ptr + i_bh * T * K, i_t, K, T, K, KP, UPCAST)
    top = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, VP), tl.float32)
    start = tl.maximum(0, first - window + 1) // BLOCK * BLOCK
    for s in range(start, tl.minimum(first + BLOCK, T), BLOCK):
        i_s = s + tl.arange(0, BLOCK)
        k = _load(k_ptr + i_bg * T * K, i_s, K, T, K, KP, UPCAST)
        v = _load(v_ptr + i_bg * T * V, i_s, V, T, V, VP, UPCAST)
        z, _ = _scores(q, k, i_t, i_s, docs_ptr, i_b * T, T, scale, cap, slope, window, HAS_CAP, HAS_SLOPES, HAS_DOCS)
        higher = tl.maximum(top, tl.max(z, 1))
        p = tl.exp(z - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(p, 1)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = higher
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + i_h).to(tl.float32)
        higher = tl.maximum(top, sink)
        total = total * tl.exp(top - higher) + tl.exp(sink - higher)
        o = o * tl.exp(top - higher)[:, None]
        top = higher
    cols = tl.arange(0, VP)
    mask = (i_t < T)[:, None] & (cols < V)[None, :]
    tl.store(o_ptr + i_bh * T * V + i_t[:, None] * V + cols[None, :], o / total[:, None], mask=mask)
    tl.store(lse_ptr + i_bh * T + i_t, top + tl.log(total), mask=i_t < T)


@triton.jit
def _keys_kernel(
    q_ptr, k_ptr, v_ptr, slopes_ptr, docs_ptr, do_ptr, lse_ptr, d_ptr, dk_ptr, dv_ptr, H, G, T, K, V, scale, window, cap,
    HAS_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_DOCS: tl.constexpr, UPCAST: tl.constexpr, BLOCK: tl.constexpr,
    KP: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK keys: all later queries of all heads that they serve."""
    first, i_bg = tl.program_id(0) * BLOCK, tl.program_id(1).to(tl.int64)
    i_b, i_g = i_bg // G, i_bg % G
    i_s = first + tl.arange(0, BLOCK)
    scale, cap = f32(scale), f32(cap)
    k = _load(k_ptr + i_bg * T * K, i_s, K, T, K, KP, UPCAST)
    v = _load(v_ptr + i_bg * T * V, i_s, V, T, V, VP, UPCAST)
    dk = tl.zeros((BLOCK, KP), tl.float32)
    dv = tl.zeros((BLOCK, VP), tl.float32)
    end = tl.minimum(T, first + BLOCK - 1 + window)
    for member in range(0, H // G):
        i_h = i_g * (H // G) + member
        i_bh = i_b * H + i_h
        slope = 0.0
        if HAS_SLOPES:
            slope = tl.load(slopes_ptr + i_h).to(tl.float32)
        for t in range(first, end, BLOCK):
            i_t = t + tl.arange(0, BLOCK)
            q = _load(q_ptr + i_bh * T * K, i_t, K, T, K, KP, UPCAST)
            do = _load(do_ptr + i_bh * T * V, i_t, V, T, V, VP, UPCAST)
            lse = tl.load(lse_ptr + i_bh * T + i_t, mask=i_t < T, other=0.0)
            d = tl.load(d_ptr + i_bh * T + i_t, mask=i_t < T, other=0.0)
            z, slope_z = _scores(
                q, k, i_t, i_s, docs_ptr, i_b * T, T, scale, cap, slope, window, HAS_CAP, HAS_SLOPES, HAS_DOCS
            )
            p = tl.exp(z - lse[:, None])
            dv += tl.dot(tl.trans(p.to(do.dtype)), do, input_precision="ieee")
            dp = tl.dot(do, tl.trans(v), input_precision="ieee")
            da = p * (dp - d[:, None]) * slope_z
            dk += tl.dot(tl.trans(da.to(q.dtype)), q, input_precision="ieee")
    k_cols, v_cols = tl.arange(0, KP), tl.arange(0, VP)
    rows = i_s.to(tl.int64)[:, None]
    k_mask, v_mask = (i_s < T)[:, None] & (k_cols < K)[None, :], (i_s < T)[:, None] & (v_cols < V)[None, :]
    tl.store(dk_ptr + i_bg * T * K + rows * K + k_cols[None, :], dk * scale, mask=k_mask)
    tl.store(dv_ptr + i_bg * T * V + rows * V + v_cols[None, :], dv, mask=v_mask)


@triton.jit
def _queries_kernel(
    q_ptr, k_ptr, v_ptr, slopes_ptr, docs_ptr, do_ptr, lse_ptr, d_ptr, dq_ptr, H, G, T, K, V, scale, window, cap,
    HAS_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_DOCS: tl.constexpr, UPCAST: tl.constexpr, BLOCK: tl.constexpr,
    KP: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """dq of BLOCK queries of one head."""
    first, i_bh = tl.program_id(0) * BLOCK, tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    i_bg = i_b * G + i_h // (H // G)
    i_t = first + tl.arange(0, BLOCK)
    scale, cap, slope = f32(scale), f32(cap), 0.0
    if HAS_SLOPES:
        slope = tl.load(slopes_ptr + i_h).to(tl.float32)
    q = _load(q_ptr + i_bh * T * K, i_t, K, T, K, KP, UPCAST)
    do = _load(do_ptr + i_bh * T * V, i_t, V, T, V, VP, UPCAST)
    lse = tl.load(lse_ptr + i_bh * T + i_t, mask=i_t < T, other=0.0)
    d = tl.load(d_ptr + i_bh * T + i_t, mask=i_t < T, other=0.0)
    dq = tl.zeros((BLOCK, KP), tl.float32)
    start = tl.maximum(0, first - window + 1) // BLOCK * BLOCK
    for s in range(start, tl.minimum(first + BLOCK, T), BLOCK):
        i_s = s + tl.arange(0, BLOCK)
        k = _load(k_ptr + i_bg * T * K, i_s, K, T, K, KP, UPCAST)
        v = _load(v_ptr + i_bg * T * V, i_s, V, T, V, VP, UPCAST)
        z, slope_z = _scores(
            q, k, i_t, i_s, docs_ptr, i_b * T, T, scale, cap, slope, window, HAS_CAP, HAS_SLOPES, HAS_DOCS
        )
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        da = tl.exp(z - lse[:, None]) * (dp - d[:, None]) * slope_z
        dq += tl.dot(da.to(k.dtype), k, input_precision="ieee")
    cols = tl.arange(0, KP)
    mask = (i_t < T)[:, None] & (cols < K)[None, :]
    tl.store(dq_ptr + i_bh * T * K + i_t.to(tl.int64)[:, None] * K + cols[None, :], dq * scale, mask=mask)


def block_size(K: int, V: int) -> int:
    """Queries and keys of a tile: larger ones would spill registers in the kernel of dk and dv."""
    return 32


def _constants(
    q: Tensor, v: Tensor, softcap: float | None, slopes: Tensor | None, docs: Tensor | None
) -> dict[str, Any]:
    K, V = q.shape[-1], v.shape[-1]
    return {
        "HAS_CAP": softcap is not None,
        "HAS_SLOPES": slopes is not None,
        "HAS_DOCS": docs is not None,
        "UPCAST": q.device.type == "cpu",  # the interpreter's products are right in fp32 only
        "BLOCK": block_size(K, V),
        "KP": max(16, next_power_of_2(K)),
        "VP": max(16, next_power_of_2(V)),
        "num_warps": 4,
        "num_stages": 2,
    }


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, slopes: Tensor | None, docs: Tensor | None, scale: float,
    window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs and l."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    docs = None if docs is None else docs.contiguous()
    B, H, T, K = q.shape
    o, lse = v.new_empty(B, H, T, v.shape[-1]), q.new_empty(B, H, T, dtype=torch.float32)
    if o.numel():
        constants = _constants(q, v, softcap, slopes, docs)
        _forward_kernel[(triton.cdiv(T, constants["BLOCK"]), B * H)](
            q, k, v, sinks, slopes, docs, o, lse, H, k.shape[1], T, K, v.shape[-1], scale, window or T, softcap or 1.0,
            HAS_SINKS=sinks is not None, **constants,
        )  # fmt: skip
    return o, lse


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.window, ctx.softcap = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(launch: Any, ctx: Any, do: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if do is None:
        return (None,) * 9
    q, k, v, sinks, slopes, docs, o, lse = ctx.saved_tensors
    d = (do.float() * o.float()).sum(-1)
    dq, dk, dv = launch(do, q, k, v, slopes, docs, lse, d, ctx.scale, ctx.window, ctx.softcap)
    dsinks = None if sinks is None else -((sinks.float()[:, None] - lse).exp() * d).sum((0, 2)).to(sinks.dtype)
    return dq, dk, dv, dsinks, None, None, None, None, None


def _launch_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, docs: Tensor | None, lse: Tensor, d: Tensor,
    scale: float, window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    do, q, k, v = do.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    docs = None if docs is None else docs.contiguous()
    (B, H, T, K), G, V = q.shape, k.shape[1], v.shape[-1]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    if do.numel():
        constants = _constants(q, v, softcap, slopes, docs)
        blocks = triton.cdiv(T, constants["BLOCK"])
        sizes = (H, G, T, K, V, scale, window or T, softcap or 1.0)
        _keys_kernel[(blocks, B * G)](q, k, v, slopes, docs, do, lse, d, dk, dv, *sizes, **constants)
        _queries_kernel[(blocks, B * H)](q, k, v, slopes, docs, do, lse, d, dq, *sizes, **constants)
    return dq, dk, dv


_function = Differentiable(
    "attention",
    _forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    backward_launcher=_launch_backward,
    fake_backward=lambda do, q, k, v, *rest: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)),
)


def _triton(*args: Any) -> Tensor:
    return _function(*args)[0]  # type: ignore[no-any-return]


def _why_not(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> str:
    if torch.float64 in (q.dtype, k.dtype, v.dtype):
        return "inputs are fp64, the kernel computes in fp32"
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}"
    wide = max(q.shape[-1], v.shape[-1])
    return "" if wide <= MAX_WIDTH else f"heads are {wide} wide, the kernel does up to {MAX_WIDTH}"


_op = Op("attention", reference, _triton, _why_not)
