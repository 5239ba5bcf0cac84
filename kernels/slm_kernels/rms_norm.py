"""Root-mean-square norm over the last dimension, with the residual addition before it if wanted.

Per row of width H, with stored gain w and ``offset`` o (1 where w - 1 is stored):

    s = residual + x                    (s = x without a residual; rounded to its dtype, as it is kept)
    r = 1 / sqrt(mean(s^2) + eps),   n = s r
    y = n (w + o)                       (y = n without a gain)

With g = dy (w + o): d n_j / d s_i = r (delta_ij - n_i n_j / H), hence

    ds = r (g - n mean(g n)) + what flows into s from elsewhere
    dw = sum over rows of dy n

ds is the gradient of both x and the residual. Rows are read once in each direction: a program holds a few of them. In the
backward pass a fixed number of programs walks over all rows and each keeps a sum for dw; these are added up afterwards in
a fixed order, so that the result is the same in every run.

Source: Zhang & Sennrich 2019, arXiv 1910.07467.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from slm_kernels._op import Differentiable
from slm_kernels._rows import as_rows, programs
from slm_kernels._triton import f32, next_power_of_2, tl, triton
from slm_kernels.dispatch import Op
from slm_kernels.tuning import Config, tuned

MAX_WIDTH = 16384
"""A program holds whole rows."""


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = ...,
    eps: float = ...,
    *,
    offset: float = ...,
    residual: None = ...,
    out_dtype: torch.dtype | None = ...,
    impl: str | None = ...,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = ...,
    eps: float = ...,
    *,
    offset: float = ...,
    residual: Tensor,
    out_dtype: torch.dtype | None = ...,
    impl: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last dimension of ``x``, or of ``residual + x``. Statistics are fp32 (fp64 for fp64).

    Args:
        x: (..., H).
        weight: (H,) gain; none if None.
        eps: added to the mean square.
        offset: added to the gain; 1 for parameters that store w - 1 (Gemma).
        residual: like ``x``, of any dtype.
        out_dtype: of y; by default that of what is normalised.
        impl: see `slm_kernels.dispatch`.

    Returns:
        y, or with a residual ``(y, residual + x)``; the sum has the wider dtype of the two.

    Raises:
        ValueError: shapes don't fit together.
    """
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be ({x.shape[-1]},), the last dimension of x, got {tuple(weight.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    return _op(impl, x, weight, eps, offset, residual, out_dtype)  # type: ignore[no-any-return]


def reference(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    offset: float = 0.0,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same from torch's own operations."""
    s = x if residual is None else residual + x
    wide = torch.promote_types(s.dtype, torch.float32)
    gain = None if weight is None else weight.to(wide) + offset if offset else weight.to(wide)
    y = F.rms_norm(s.to(wide), (s.shape[-1],), gain, eps).to(out_dtype or s.dtype)
    return y if residual is None else (y, s)


@triton.jit
def _forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    s_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    N,
    H,
    eps,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows per program."""
    i_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_n, i_h = i_row[:, None], tl.arange(0, BLOCK)[None, :]
    mask = (i_n < N) & (i_h < H)
    s = tl.load(x_ptr + i_n * x_stride + i_h, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        s += tl.load(residual_ptr + i_n * residual_stride + i_h, mask=mask, other=0.0).to(tl.float32)
        kept = s.to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + i_n * H + i_h, kept, mask=mask)
        s = kept.to(tl.float32)
    r = 1 / tl.sqrt(tl.sum(s * s, 1) / H + f32(eps))
    tl.store(rstd_ptr + i_row, r, mask=i_row < N)
    y = s * r[:, None]
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + i_h, mask=i_h < H, other=0.0).to(tl.float32) + f32(offset)
    tl.store(y_ptr + i_n * H + i_h, y, mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr,
    ds_in_ptr,
    s_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    dres_ptr,
    dw_ptr,
    dy_stride,
    ds_in_stride,
    s_stride,
    N,
    H,
    offset,
    tiles,
    HAS_DS_IN: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    TWICE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program walks over ``tiles`` tiles of ROWS rows. TWICE: write ds in the residual's dtype as well."""
    program = tl.program_id(0).to(tl.int64)
    i_h = tl.arange(0, BLOCK)[None, :]
    in_h = i_h < H
    gain = tl.zeros((1, BLOCK), tl.float32) + 1.0
    if HAS_WEIGHT:
        gain = tl.load(weight_ptr + i_h, mask=in_h, other=0.0).to(tl.float32) + f32(offset)
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tiles):
        i_row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        i_n = i_row[:, None]
        mask = (i_n < N) & in_h
        dy = tl.load(dy_ptr + i_n * dy_stride + i_h, mask=mask, other=0.0).to(tl.float32)
        s = tl.load(s_ptr + i_n * s_stride + i_h, mask=mask, other=0.0).to(tl.float32)
        # Loaded as a vector: as a column each thread would load it once for every number that it holds.
        r = tl.load(rstd_ptr + i_row, mask=i_row < N, other=0.0)[:, None]
        n = s * r
        g = dy * gain
        if HAS_WEIGHT:
            dw += dy * n
        ds = r * (g - n * (tl.sum(g * n, 1, keep_dims=True) / H))
        if HAS_DS_IN:
            ds += tl.load(ds_in_ptr + i_n * ds_in_stride + i_h, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + i_n * H + i_h, ds, mask=mask)
        if TWICE:
            tl.store(dres_ptr + i_n * H + i_h, ds, mask=mask)
    if HAS_WEIGHT:
        tl.store(dw_ptr + program * H + i_h, tl.sum(dw, 0, keep_dims=True), mask=in_h)


def default_config(H: int, back: bool) -> Config:
    """Rows per program and warps: 16 numbers per thread and tensor, 4 warps where a row is short."""
    block = next_power_of_2(H)
    warps = max(4, min(16, block // 512))
    rows = max(1, warps * 512 // block)
    return Config(min(rows, 4 if back else 8), warps)


CANDIDATES = [Config(rows, warps) for rows in (1, 2, 4, 8) for warps in (2, 4, 8, 16)]


def _forward(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, offset: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum (empty without a residual) and 1 / RMS."""
    H = x.shape[-1]
    x_NH, residual_NH = as_rows(x), None if residual is None else as_rows(residual)
    N = x_NH.shape[0]
    y = x.new_empty(x.shape, dtype=out_dtype)
    s = x.new_empty(0) if residual is None else x.new_empty(x.shape, dtype=_sum_dtype(x, residual))
    rstd_N = x.new_empty(N, dtype=torch.float32)
    if x.numel() == 0:
        return y, s, rstd_N

    def launch(config: Config) -> None:
        _forward_kernel[(triton.cdiv(N, config.block),)](
            x_NH,
            residual_NH,
            weight,
            y,
            s,
            rstd_N,
            x_NH.stride(0),
            0 if residual_NH is None else residual_NH.stride(0),
            N,
            H,
            eps,
            offset,
            HAS_RESIDUAL=residual is not None,
            HAS_WEIGHT=weight is not None,
            ROWS=config.block,
            BLOCK=next_power_of_2(H),
            num_warps=config.warps,
        )

    launch(tuned("rms_norm", (H, x.dtype, residual is not None), default_config(H, False), CANDIDATES, launch))
    return y, s, rstd_N


def _sum_dtype(x: Tensor, residual: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, residual.dtype)


def _fake(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, offset: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=out_dtype)
    s = x.new_empty(0) if residual is None else x.new_empty(x.shape, dtype=_sum_dtype(x, residual))
    return y, s, x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, residual, _, offset, _ = inputs
    _, s, rstd_N = output
    ctx.mark_non_differentiable(rstd_N, *([s] if residual is None else []))
    ctx.save_for_backward(x if residual is None else s, weight, rstd_N)
    ctx.offset, ctx.x_dtype = offset, x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype


def _backward(launch: Any, ctx: Any, dy: Tensor | None, ds: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    s, weight, rstd_N = ctx.saved_tensors
    two = ctx.residual_dtype not in (None, ctx.x_dtype)
    if dy is None:
        if ds is None:
            return (None,) * 6
        return ds.to(ctx.x_dtype), None, ds.to(ctx.residual_dtype), None, None, None
    want_w = weight is not None and ctx.needs_input_grad[1]
    dx, dres, dw = launch(dy, ds, s, weight, rstd_N, ctx.offset, ctx.x_dtype, ctx.residual_dtype if two else None)
    dres = None if ctx.residual_dtype is None else dres if two else dx
    return dx, dw if want_w else None, dres, None, None, None


def _launch_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    offset: float,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, the same in the residual's dtype if that is another one (else empty), and dw (empty without a gain)."""
    H = s.shape[-1]
    dy_NH, s_NH, ds_NH = as_rows(dy), as_rows(s), None if ds is None else as_rows(ds)
    N = s_NH.shape[0]
    dx = s.new_empty(s.shape, dtype=x_dtype)
    dres = s.new_empty(0) if residual_dtype is None else s.new_empty(s.shape, dtype=residual_dtype)
    if s.numel() == 0:
        return dx, dres, s.new_empty(0) if weight is None else torch.zeros_like(weight)

    def launch(config: Config) -> Tensor:
        P, tiles = programs(N, config.block, s.device)
        dw_PH = s.new_empty((0 if weight is None else P, H), dtype=torch.float32)
        _backward_kernel[(P,)](
            dy_NH,
            ds_NH,
            s_NH,
            weight,
            rstd,
            dx,
            dres,
            dw_PH,
            dy_NH.stride(0),
            0 if ds_NH is None else ds_NH.stride(0),
            s_NH.stride(0),
            N,
            H,
            offset,
            tiles,
            HAS_DS_IN=ds is not None,
            HAS_WEIGHT=weight is not None,
            TWICE=residual_dtype is not None,
            ROWS=config.block,
            BLOCK=next_power_of_2(H),
            num_warps=config.warps,
        )
        return dw_PH

    key = (H, s.dtype, ds is not None)
    dw_PH = launch(tuned("rms_norm backward", key, default_config(H, True), CANDIDATES, launch))
    return dx, dres, s.new_empty(0) if weight is None else dw_PH.sum(0).to(weight.dtype)


def _fake_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    offset: float,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dres = s.new_empty(0) if residual_dtype is None else s.new_empty(s.shape, dtype=residual_dtype)
    dw = s.new_empty(0) if weight is None else weight.new_empty(weight.shape)
    return s.new_empty(s.shape, dtype=x_dtype), dres, dw


_function = Differentiable(
    "rms_norm",
    _forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    backward_launcher=_launch_backward,
    fake_backward=_fake_backward,
)


def _triton(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    offset: float,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor | tuple[Tensor, Tensor]:
    summed = x.dtype if residual is None else _sum_dtype(x, residual)
    y, s, _ = _function(x, weight, residual, eps, offset, out_dtype or summed)
    return y if residual is None else (y, s)


def _why_not(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    offset: float,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
) -> str:
    if any(t is not None and t.dtype == torch.float64 for t in (x, weight, residual)):
        return "inputs are fp64, the kernel computes in fp32"
    if not 0 < x.shape[-1] <= MAX_WIDTH:
        return f"rows are {x.shape[-1]} wide, the kernel does 1 to {MAX_WIDTH}"
    return ""


_op = Op("rms_norm", reference, _triton, _why_not, fused_by_inductor=True)
