"""The nearest semi-orthogonal matrix by Newton-Schulz iteration, for stacks of matrices: the heart of Muon.

From X = G / (room |G|_F), with the short side first, each step is, with coefficients of its own if wanted,

    A = X X^T,   B = b A + c A A^T,   X <- a X + B X

which drives all singular values towards 1 (with the usual coefficients to about 0.7 .. 1.2). A and B are symmetric: the
kernel computes the tiles on and above the diagonal and writes each twice, once transposed. That saves almost half of two of
the three products.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slm_kernels._triton import f32, tl, triton
from slm_kernels.dispatch import Op
from slm_kernels.tuning import Config, tuned

Coefficients = tuple[float, float, float]
"""a, b, c of a step."""
FIVE_STEPS: tuple[Coefficients, ...] = ((3.4445, -4.7750, 2.0315),) * 5
"""Jordan's."""
PAYS_FROM = 1024
"""Short sides below this are left to torch's batched product unless the kernel is asked for."""


def newton_schulz(
    g_NRC: Tensor,
    coefficients: Sequence[Coefficients] = FIVE_STEPS,
    *,
    room: float = 1.0,
    dtype: torch.dtype | None = None,
    impl: str | None = None,
) -> Tensor:
    """About U V^T for each matrix U S V^T of the stack; no gradient.

    Args:
        g_NRC: (N, rows, columns).
        coefficients: a, b, c of each step.
        room: singular values begin so many times smaller than divided by the norm.
        dtype: of the arithmetic; by default the matrices'. bf16 is enough.
        impl: see `slm_kernels.dispatch`.

    Returns:
        (N, rows, columns) in the matrices' dtype.
    """
    if g_NRC.ndim != 3:
        raise ValueError(f"g must be a stack of matrices (N, rows, columns), got {tuple(g_NRC.shape)}")
    with torch.no_grad():
        return _op(impl, g_NRC, tuple(coefficients), room, dtype)  # type: ignore[no-any-return]


def _started(g_NRC: Tensor, room: float, dtype: torch.dtype | None) -> Tensor:
    """Norm 1 / room, short side first."""
    x = g_NRC.to(dtype or g_NRC.dtype)
    x = x.mT if x.shape[-2] > x.shape[-1] else x
    norm = x.to(torch.promote_types(x.dtype, torch.float32)).norm(dim=(-2, -1), keepdim=True)
    return x / (norm * room + 1e-7).to(x.dtype)


def _finished(x: Tensor, g_NRC: Tensor) -> Tensor:
    return (x.mT if g_NRC.shape[-2] > g_NRC.shape[-1] else x).to(g_NRC.dtype)


def reference(
    g_NRC: Tensor, coefficients: Sequence[Coefficients], room: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """The same from torch's own operations."""
    x = _started(g_NRC, room, dtype)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return _finished(x, g_NRC)


@triton.jit
def _symmetric_kernel(
    x_ptr,
    add_ptr,
    out_ptr,
    x_sn,
    x_sm,
    x_sk,
    M,
    K,
    alpha,
    beta,
    HAS_ADD: tl.constexpr,
    UPCAST: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """out = alpha X X^T + beta add for one tile on or above the diagonal, and its mirror image. out and add: (N, M, M)."""
    tiles = tl.cdiv(M, TILE)
    row, col = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    n = tl.program_id(1).to(tl.int64)
    if row <= col:
        i_r, i_c = row * TILE + tl.arange(0, TILE), col * TILE + tl.arange(0, TILE)
        o_k = tl.arange(0, DEPTH)
        p_r = x_ptr + n * x_sn + i_r[:, None].to(tl.int64) * x_sm
        p_c = x_ptr + n * x_sn + i_c[None, :].to(tl.int64) * x_sm
        total = tl.zeros((TILE, TILE), tl.float32)
        for k in range(0, K, DEPTH):
            i_k = k + o_k
            left = tl.load(p_r + i_k[None, :] * x_sk, mask=(i_r < M)[:, None] & (i_k < K)[None, :], other=0.0)
            right = tl.load(p_c + i_k[:, None] * x_sk, mask=(i_c < M)[None, :] & (i_k < K)[:, None], other=0.0)
            if UPCAST:
                left, right = left.to(tl.float32), right.to(tl.float32)
            total = tl.dot(left, right, total, input_precision="ieee")
        total *= f32(alpha)
        at = n * M * M + i_r[:, None].to(tl.int64) * M + i_c[None, :]
        mask = (i_r < M)[:, None] & (i_c < M)[None, :]
        if HAS_ADD:
            total += f32(beta) * tl.load(add_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, total, mask=mask)
        if row < col:
            mirror = n * M * M + i_c[:, None].to(tl.int64) * M + i_r[None, :]
            tl.store(out_ptr + mirror, tl.trans(total), mask=(i_c < M)[:, None] & (i_r < M)[None, :])


def default_config(M: int) -> Config:
    """Side of a tile."""
    return Config(128, 8, 3) if M > 256 else Config(64, 4, 3)


CANDIDATES = [Config(tile, warps, stages) for tile in (64, 128) for warps in (4, 8) for stages in (3, 4)]


def symmetric(x_NMK: Tensor, add_NMM: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """alpha X X^T + beta add, for ``add`` symmetric and contiguous. (N, M, M)."""
    N, M, K = x_NMK.shape
    out_NMM = x_NMK.new_empty(N, M, M)
    if out_NMM.numel() == 0:
        return out_NMM

    def launch(config: Config) -> None:
        _symmetric_kernel[(triton.cdiv(M, config.block) ** 2, N)](
            x_NMK, add_NMM, out_NMM, *x_NMK.stride(), M, K, alpha, beta, HAS_ADD=add_NMM is not None,
            UPCAST=x_NMK.device.type == "cpu", TILE=config.block, DEPTH=32, num_warps=config.warps,
            num_stages=config.stages,
        )  # fmt: skip

    key = (N, M, K, x_NMK.dtype)
    launch(tuned("newton_schulz", key, default_config(M), CANDIDATES, launch))
    return out_NMM


def _triton(g_NRC: Tensor, coefficients: Sequence[Coefficients], room: float, dtype: torch.dtype | None) -> Tensor:
    x = _started(g_NRC, room, dtype)
    for a, b, c in coefficients:
        gram = symmetric(x)
        x = torch.baddbmm(x, symmetric(gram, gram, c, b), x, beta=a)
    return _finished(x, g_NRC)


def _why_not(g_NRC: Tensor, coefficients: object, room: float, dtype: torch.dtype | None) -> str:
    return "" if (dtype or g_NRC.dtype) != torch.float64 else "arithmetic is fp64, the kernel sums in fp32"


def _why_slow(g_NRC: Tensor, *rest: object) -> str:
    short = min(g_NRC.shape[-2:])
    return "" if short >= PAYS_FROM else f"the matrices' short side is {short}, the kernel pays from {PAYS_FROM} on"


_op = Op("newton_schulz", reference, _triton, _why_not, why_slow=_why_slow)
