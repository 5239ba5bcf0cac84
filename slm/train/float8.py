"""``train.precision=fp8``: the products with the blocks' weight matrices in 8-bit floating point, forward and backward.

A linear layer is three products of matrices: y = x W' on the way forth, dx = dy W and dW = dy' x on the way back. A GPU from Ada
and Hopper on multiplies 8-bit numbers twice as fast as bf16 ones. Two formats (Micikevicius et al. 2022, arXiv 2209.05433): e4m3, with 3
bits of mantissa and up to 448, for what goes forth; e5m2, with more range, for gradients. Before it is rounded, each matrix
is scaled so that its largest number becomes the format's largest (one scale a tensor, found anew in every pass); the products are
summed in higher precision by the hardware and scaled back. x and W are kept for the way back as they were multiplied, in one byte a
number instead of two (each layer keeps its own, where queries, keys and values share one x in bf16).

The results are other ones than bf16's, so it is a precision and not an implementation, and a scale is one for all rows of a
micro-batch: another size of it, or another number of processes, rounds otherwise. What stays bf16: scores of attention, embeddings, the
head and its loss, a router, experts, and layers whose sides aren't multiples of 16, which the hardware asks for. Evaluation and exported models are
bf16 as well: weights are fp32 all the time.

It pays for wide layers only: finding the scales and rounding reads every matrix once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slm.config.errors import ConfigError
from slm.model.decoder import Decoder
from slm.model.precision import working_dtype
from slm.train.recomputing import blocks_of

FORTH, BACK = torch.float8_e4m3fn, torch.float8_e5m2
SIDE = 16
"""Sides of the matrices are multiples of this (torch._scaled_mm's condition, which is cuBLASLt's)."""
LEAST_CAPABILITY = (8, 9)
"""Ada. Ampere has no such instructions."""


class Float8Linear(nn.Linear):
    """A linear layer whose three products run in 8 bits while it trains, and as any other where it doesn't."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out), in the precision that autocast asks for."""
        if not self.training:
            return super().forward(input)
        x_ND = input.flatten(0, -2)
        rows = len(x_ND)
        if rows % SIDE:  # rows are the inner side of dW's product; rows of zeros change no sum and no scale
            x_ND = nn.functional.pad(x_ND, (0, 0, 0, -rows % SIDE))
        y_NM = _Product.apply(x_ND, self.weight, working_dtype(self.weight))[:rows]
        if self.bias is not None:
            y_NM = y_NM + self.bias.to(y_NM.dtype)
        return y_NM.unflatten(0, input.shape[:-1])  # type: ignore[no-any-return]


def apply(decoder: Decoder) -> list[str]:
    """Turn the linear layers of a decoder's blocks into `Float8Linear`, in place; returns their names.

    Parameters, names and the tree of modules stay as they are. Before compiling and sharding.

    Raises:
        ConfigError: a device without 8-bit products; no layer of this model fits.
    """
    check_device(next(decoder.parameters()).device)
    inside = {id(module) for block in blocks_of(decoder) for module in block.modules()}
    found = []
    for name, module in decoder.named_modules():
        if type(module) is nn.Linear and id(module) in inside and _fits(decoder, name, module):
            module.__class__ = Float8Linear
            found.append(name)
    if not found:
        raise ConfigError(
            f"train.precision=fp8: no linear layer of this model's blocks has two sides that are multiples of {SIDE}, which the 8-bit products "
            "need. Choose other widths, or train.precision=bf16."
        )
    return found


def _fits(decoder: Decoder, name: str, layer: nn.Linear) -> bool:
    parent, _, leaf = name.rpartition(".")
    precise = getattr(decoder.get_submodule(parent), "keeps_precision", ())
    return leaf not in precise and layer.in_features % SIDE == 0 == layer.out_features % SIDE


def check_device(device: torch.device) -> None:
    """Raise `ConfigError` if a device has no 8-bit products."""
    if device.type == "cpu" or (device.type == "cuda" and torch.version.hip is None and _capable(device)):
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    why = "was never tried" if torch.version.hip else "has no 8-bit products"
    raise ConfigError(f"train.precision=fp8: {name} {why}. Take train.precision=bf16.")


def _capable(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


class _Product(torch.autograd.Function):
    """x (N, D) times the transpose of W (M, D), to (N, M) of ``dtype``."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_MD: Tensor, dtype: torch.dtype) -> Tensor:
        x, x_scale = rounded(x_ND, FORTH)
        weight, weight_scale = rounded(weight_MD, FORTH)
        ctx.save_for_backward(x, x_scale, weight, weight_scale)
        ctx.dtypes = x_ND.dtype, weight_MD.dtype
        # sums may be kept with fewer bits on the way forth, as is the custom: faster on Hopper, and y is rounded to bf16 anyway
        with torch.autocast(
            x.device.type, enabled=False
        ):  # else a CPU, which unpacks the numbers and calls mm, rounds them again
            return torch._scaled_mm(x, weight.t(), x_scale, weight_scale, out_dtype=dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        grad, grad_scale = rounded(grads[0], BACK)
        dx_ND = torch._scaled_mm(grad, _by_columns(weight), grad_scale, weight_scale, out_dtype=x_dtype)
        dweight_MD = torch._scaled_mm(
            grad.t().contiguous(), _by_columns(x), grad_scale, x_scale, out_dtype=weight_dtype
        )
        return dx_ND, dweight_MD, None


def rounded(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(8-bit numbers, row by row; the factor, an fp32 scalar, that makes them the matrix again).

    What isn't finite makes the scale so, and with it every product: the step's gradient shows it, and the step is skipped.
    """
    largest = torch.finfo(dtype).max
    scale = matrix.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny * largest) / largest
    return (matrix.float() / scale).clamp(-largest, largest).to(dtype).contiguous(), scale


def _by_columns(matrix: Tensor) -> Tensor:
    """The same matrix stored column by column, as the product's second factor must be."""
    return matrix.t().contiguous().t()
