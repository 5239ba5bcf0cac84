"""Feed-forward parts: what happens to each token by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Self

import pydantic
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import BuildContext, ModelPart


class FeedForwardPart(ModelPart):
    """A feed-forward."""

    hidden: int | None = pydantic.Field(None, gt=0)
    """Inner width; by default chosen so that all kinds have about 8 dim^2 parameters."""

    def build(self, ctx: BuildContext) -> nn.Module:
        raise NotImplementedError


ffn = Registry("ffn", FeedForwardPart)
FeedForwardSlot = Annotated[FeedForwardPart, ffn.field()]


class Gated(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, dim: int, hidden: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.act = act

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x_BTD)) * self.up(x_BTD))  # type: ignore[no-any-return]


class Plain(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, dim: int, hidden: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.act = act

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.act(self.up(x_BTD)))  # type: ignore[no-any-return]


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, Primer)."""
    return F.relu(x).square()


@ffn.register("swiglu", paper="Shazeer 2020, arXiv 2002.05202")
class SwiGLU(FeedForwardPart):
    """SiLU-gated feed-forward; ``hidden`` is 8/3 of the width by default, rounded up to a multiple of 64."""

    def resolve(self, dim: int, layers: int) -> Self:
        return self.with_(hidden=self.hidden or -(-8 * dim // 3 // 64) * 64)

    def build(self, ctx: BuildContext) -> nn.Module:
        return Gated(ctx.dim, self.hidden or 0, F.silu)

    def cost(self, ctx: BuildContext) -> Cost:
        matrices = 3 * ctx.dim * (self.hidden or 0)
        return Cost(matrices, 2 * matrices)


@ffn.register("relu2", paper="So et al. 2021 (Primer), arXiv 2109.08668")
class ReluSquared(FeedForwardPart):
    """Ungated feed-forward with squared ReLU; ``hidden`` is 4 times the width by default."""

    def resolve(self, dim: int, layers: int) -> Self:
        return self.with_(hidden=self.hidden or 4 * dim)

    def build(self, ctx: BuildContext) -> nn.Module:
        return Plain(ctx.dim, self.hidden or 0, relu2)

    def cost(self, ctx: BuildContext) -> Cost:
        matrices = 2 * ctx.dim * (self.hidden or 0)
        return Cost(matrices, 2 * matrices)
