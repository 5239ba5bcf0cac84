"""PanGu-pi's series activation: a sum of scaled and shifted copies of one activation, to make shallow layers less linear."""

from __future__ import annotations

from typing import Self

import pydantic
import torch
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.ffn.activations import ACTIVATIONS, Activation
from slm.model.ffn.base import FeedForwardPart, ffn
from slm.model.ffn.dense import ActivationName, GatedModule, PlainModule
from slm.model.parts import BuildContext


class SeriesActivation(nn.Module):
    """sum_i act(a_i x + b_i) with learned a_i, b_i per channel. One term starts as ``act`` itself; several start as its
    average over shifts, since equal terms would get equal gradients and stay equal."""

    param_classes = {"scales": "scalar", "shifts": "scalar"}
    axes = {"scales": (None, "hidden"), "shifts": (None, "hidden")}

    def __init__(self, terms: int, width: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.scales, self.shifts = nn.Parameter(torch.empty(terms, width)), nn.Parameter(torch.empty(terms, width))
        spread = torch.linspace(-1, 1, terms)[:, None] if terms > 1 else torch.zeros(1, 1)
        self.starts = {"scales": 1.0 / terms, "shifts": spread}

    def forward(self, x_BTF: Tensor) -> Tensor:
        terms = zip(self.scales.to(x_BTF.dtype), self.shifts.to(x_BTF.dtype), strict=True)
        return sum(self.act(a * x_BTF + b) for a, b in terms)  # type: ignore[return-value]


@ffn.register("series", paper="Wang et al. 2023 (PanGu-pi), arXiv 2312.17276")
class Series(FeedForwardPart):
    """Feed-forward with a series of learned, shifted activations."""

    terms: int = pydantic.Field(2, gt=0)
    """Activations that are summed; 1 is an ordinary one with a learned scale and shift."""
    activation: ActivationName = "gelu"
    """The activation that is repeated, by name."""
    gated: bool = False
    """Multiply by a second projection, as SwiGLU does."""
    bias: bool = False
    """Biases on all projections."""

    def resolve(self, dim: int, layers: int) -> Self:
        default = -(-8 * dim // 3 // 64) * 64 if self.gated else 4 * dim
        return self.with_(hidden=self.hidden or default)

    def narrowed(self, hidden: int) -> Self:
        return self.with_(hidden=hidden)

    @property
    def inner_width(self) -> int:
        return (self.hidden or 0) * (1 + self.gated)

    def build(self, ctx: BuildContext) -> nn.Module:
        act = SeriesActivation(self.terms, self.hidden or 0, ACTIVATIONS[self.activation])
        return (GatedModule if self.gated else PlainModule)(ctx, self.hidden or 0, act, self.bias)

    def cost(self, ctx: BuildContext) -> Cost:
        hidden, inner = self.hidden or 0, 1 + self.gated
        rows = (inner + 1) * ctx.dim * hidden
        return Cost(rows + 2 * self.terms * hidden + self.bias * (inner * hidden + ctx.dim), 2 * rows)
