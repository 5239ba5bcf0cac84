"""Embedding whose gradient is summed in fp32, in the same order in every run.

Forward is a gather, which torch does well. Its transpose adds up, for each token of the vocabulary, the gradients of the
places where it stood:

    dW[v] = sum over n with ids[n] = v of dy[n]

Places are sorted by id, stably, so that those of one token lie together in the order of the text. A program at the start of
such a stretch walks along it and writes its row of dW; programs elsewhere in a stretch end at once. There are no atomics.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm_kernels._op import Differentiable
from slm_kernels._rows import as_rows
from slm_kernels._triton import next_power_of_2, tl, triton
from slm_kernels.dispatch import Op
from slm_kernels.tuning import Config, tuned


def embedding(ids: Tensor, weight_VD: Tensor, *, impl: str | None = None) -> Tensor:
    """Rows of ``weight``: (...) int64 to (..., D).

    ``torch`` uses torch's own gradient, which on a GPU may add in another order each time, and adds in the weight's dtype.
    """
    if weight_VD.ndim != 2:
        raise ValueError(f"weight must be (V, D), got {tuple(weight_VD.shape)}")
    return _op(impl, ids, weight_VD)  # type: ignore[no-any-return]


def reference(ids: Tensor, weight_VD: Tensor) -> Tensor:
    """The same from torch's own operations."""
    return F.embedding(ids, weight_VD)


@triton.jit
def _backward_kernel(
    dy_ptr, ids_ptr, order_ptr, dw_ptr, dy_stride, M, D, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The stretch that begins at place ``first`` of the sorted ids, BLOCK columns of it, ROWS places at a time."""
    first = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(ids_ptr + first)
    before = tl.load(ids_ptr + first - 1, mask=first > 0, other=-1)
    if token != before:
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        at = first
        more = True
        while more:
            i_m = at + tl.arange(0, ROWS)
            mine = tl.load(ids_ptr + i_m, mask=i_m < M, other=-1) == token
            place = tl.load(order_ptr + i_m, mask=mine, other=0)
            mask = mine[:, None] & (cols < D)[None, :]
            total += tl.load(dy_ptr + place[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
            at += ROWS
            more = tl.sum(mine.to(tl.int32), 0) == ROWS
        tl.store(dw_ptr + token * D + cols, tl.sum(total, 0), mask=cols < D)


CANDIDATES = [Config(rows, warps) for rows in (4, 8, 16) for warps in (4, 8)]
DEFAULT = Config(8, 4)
"""Places at a time."""


def _forward(ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(ids, weight)


def _fake(ids: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty((*ids.shape, weight.shape[1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, weight = inputs
    ctx.save_for_backward(ids)
    ctx.V, ctx.dtype = weight.shape[0], weight.dtype


def _backward(launch: Any, ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    return None, None if dy is None else launch(dy, ctx.saved_tensors[0], ctx.V, ctx.dtype)


def _launch_backward(dy: Tensor, ids: Tensor, V: int, dtype: torch.dtype) -> Tensor:
    dy_MD = as_rows(dy)
    M, D = dy_MD.shape
    dw_VD = dy.new_zeros(V, D, dtype=dtype)
    if dy.numel() == 0:
        return dw_VD
    sorted_M, order_M = ids.flatten().sort(stable=True)

    def launch(config: Config) -> None:
        block = min(256, next_power_of_2(D))
        _backward_kernel[(M, triton.cdiv(D, block))](
            dy_MD,
            sorted_M,
            order_M,
            dw_VD,
            dy_MD.stride(0),
            M,
            D,
            ROWS=config.block,
            BLOCK=block,
            num_warps=config.warps,
        )

    launch(tuned("embedding backward", (D, dy.dtype), DEFAULT, CANDIDATES, launch))
    return dw_VD


_function = Differentiable(
    "embedding",
    _forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    backward_launcher=_launch_backward,
    fake_backward=lambda dy, ids, V, dtype: dy.new_empty((V, dy.shape[-1]), dtype=dtype),
)


def _why_not(ids: Tensor, weight_VD: Tensor) -> str:
    return "" if weight_VD.dtype != torch.float64 else "weight is fp64, the kernel sums in fp32"


_op = Op("embedding", reference, _function, _why_not)
