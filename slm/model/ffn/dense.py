"""Gated and plain feed-forwards, with any activation; the usual ones have names of their own."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import pydantic
import torch
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.axes import Axes
from slm.model.ffn.activations import ACTIVATIONS, Activation, activate_into, known_activation
from slm.model.ffn.base import FeedForwardPart, ffn
from slm.model.parts import BuildContext
from slm.model.sequence import Here

ActivationName = Annotated[str, pydantic.AfterValidator(known_activation)]


class GatedModule(nn.Module):
    """down(act(gate(x)) * up(x))."""

    axes: ClassVar[dict[str, Axes]] = {
        "gate.weight": ("hidden", "dim"),
        "up.weight": ("hidden", "dim"),
        "down.weight": ("dim", "hidden"),
    }
    axes |= {"gate.bias": ("hidden",), "up.bias": ("hidden",), "down.bias": ("dim",)}

    def __init__(self, ctx: BuildContext, hidden: int, act: Activation, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(ctx.dim, hidden, bias=bias)
        self.up = nn.Linear(ctx.dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, ctx.dim, bias=bias)
        self.act, self.conv = act, ctx.model.conv.build("D", 2 * hidden)

    def forward(self, x_BTD: Tensor, here: Here) -> Tensor:
        gate, up = self.gate(x_BTD), self.up(x_BTD)
        if self.conv is not None:
            gate, up = self.conv(torch.cat((gate, up), -1), here).chunk(2, -1)
        return activate_into(self.down, self.act, gate, up)


class PlainModule(nn.Module):
    """down(act(up(x)))."""

    axes: ClassVar[dict[str, Axes]] = {"up.weight": ("hidden", "dim"), "down.weight": ("dim", "hidden")}
    axes |= {"up.bias": ("hidden",), "down.bias": ("dim",)}

    def __init__(self, ctx: BuildContext, hidden: int, act: Activation, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(ctx.dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, ctx.dim, bias=bias)
        self.act, self.conv = act, ctx.model.conv.build("D", hidden)

    def forward(self, x_BTD: Tensor, here: Here) -> Tensor:
        inner = self.up(x_BTD)
        if self.conv is not None:
            inner = self.conv(inner, here)
        return activate_into(self.down, self.act, inner)


class DensePart(FeedForwardPart):
    """What gated and plain feed-forwards have in common."""

    gated: ClassVar[bool] = False
    kind: ClassVar[str] = ""
    bias: bool = False
    """Biases on all projections."""

    @property
    def act(self) -> str:
        """The activation's name."""
        return self.kind

    def resolve(self, dim: int, layers: int) -> Self:
        default = -(-8 * dim // 3 // 64) * 64 if self.gated else 4 * dim
        return self.with_(hidden=self.hidden or default)

    def narrowed(self, hidden: int) -> Self:
        return self.with_(hidden=hidden)

    @property
    def inner_width(self) -> int:
        return (self.hidden or 0) * (1 + self.gated)

    def build(self, ctx: BuildContext) -> nn.Module:
        module = GatedModule if self.gated else PlainModule
        return module(ctx, self.hidden or 0, ACTIVATIONS[self.act], self.bias)

    def cost(self, ctx: BuildContext) -> Cost:
        hidden, inner = self.hidden or 0, 1 + self.gated
        rows = (inner + 1) * ctx.dim * hidden
        return Cost(rows + self.bias * (inner * hidden + ctx.dim), 2 * rows)

    def canonical(self) -> FeedForwardPart:
        general = Gated if self.gated else Dense
        return general(hidden=self.hidden, bias=self.bias, activation=self.act)


@ffn.register("gated", paper="Shazeer 2020, arXiv 2002.05202")
class Gated(DensePart):
    """Gated feed-forward with any activation; ``hidden`` is 8/3 of the width by default, rounded up to a multiple of 64."""

    gated = True
    activation: ActivationName = "silu"
    """Of the gate, by name."""

    @property
    def act(self) -> str:
        return self.activation


@ffn.register("plain", paper="Vaswani et al. 2017, arXiv 1706.03762")
class Dense(DensePart):
    """Ungated feed-forward with any activation; ``hidden`` is 4 times the width by default."""

    gated = False
    activation: ActivationName = "gelu"
    """By name."""

    @property
    def act(self) -> str:
        return self.activation


class _Gated(DensePart):
    gated = True


class _Plain(DensePart):
    gated = False


@ffn.register("swiglu", paper="Shazeer 2020, arXiv 2002.05202")
class SwiGLU(_Gated):
    """SiLU-gated feed-forward."""

    kind = "silu"


@ffn.register("geglu", paper="Shazeer 2020, arXiv 2002.05202")
class GeGLU(_Gated):
    """GELU-gated feed-forward (the tanh form, as Gemma)."""

    kind = "gelu_tanh"


@ffn.register("reglu", paper="Shazeer 2020, arXiv 2002.05202")
class ReGLU(_Gated):
    """ReLU-gated feed-forward."""

    kind = "relu"


@ffn.register("relu2", paper="So et al. 2021 (Primer), arXiv 2109.08668")
class ReluSquared(_Plain):
    """Ungated feed-forward with squared ReLU."""

    kind = "relu2"


@ffn.register("relu", paper="Vaswani et al. 2017, arXiv 1706.03762")
class Relu(_Plain):
    """Ungated feed-forward with ReLU."""

    kind = "relu"


@ffn.register("gelu", paper="Hendrycks & Gimpel 2016, arXiv 1606.08415")
class Gelu(_Plain):
    """Ungated feed-forward with GELU."""

    kind = "gelu"
