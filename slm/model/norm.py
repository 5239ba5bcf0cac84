"""Normalisation. Statistics are fp32 whatever the input's precision."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import BuildContext, ModelPart


class NormPart(ModelPart):
    """A normalisation over the last dimension."""

    eps: float = 1e-5

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError

    def params(self, width: int) -> int:
        """Parameters of one norm of this width."""
        raise NotImplementedError

    def cost(self, ctx: BuildContext) -> Cost:
        return Cost(params=self.params(ctx.dim))


norm = Registry("norm", NormPart)
NormSlot = Annotated[NormPart, norm.field()]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    param_classes = {"weight": "norm"}

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias."""

    param_classes = {"weight": "norm", "bias": "bias"}

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, self.eps).to(x.dtype)


@norm.register("rmsnorm", paper="Zhang & Sennrich 2019, arXiv 1910.07467")
class RMSNormPart(NormPart):
    """Root-mean-square normalisation with a gain."""

    def build(self, width: int) -> nn.Module:
        return RMSNorm(width, self.eps)

    def params(self, width: int) -> int:
        return width


@norm.register("layernorm", paper="Ba et al. 2016, arXiv 1607.06450")
class LayerNormPart(NormPart):
    """Layer normalisation with a gain and, unless switched off, a bias."""

    bias: bool = True

    def build(self, width: int) -> nn.Module:
        return LayerNorm(width, self.eps, self.bias)

    def params(self, width: int) -> int:
        return width * (1 + self.bias)
