"""The recurrent block of Griffin: a gated linear recurrence in place of attention.

::

    y = gelu(W_y x);  u = conv(W_x x);  out = W_o (y * h)
    r, i = sigmoid(blockdiag(u));  a_t = exp(-8 r_t softplus(c));  h_t = a_t h_(t-1) + sqrt(1 - a_t^2) i_t u_t

The state starts anew with each document. The recurrence is solved in fp32 by doubling: log2(T) passes, each of which
combines a step with the one 2^k before it.
"""

from __future__ import annotations

from typing import ClassVar, Self

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.attention.base import AttentionPart, attention
from slm.model.cache import Room, State
from slm.model.conv import ShortConv, same_document
from slm.model.parts import BuildContext, refuse
from slm.model.sequence import Here

SHARPNESS = 8.0
"""c in the paper's a^(c r)."""


class BlockDiagonal(nn.Module):
    """A linear layer per head: (..., W) -> (..., W)."""

    param_classes = {"weight": "matrix", "bias": "bias"}

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, width // heads, width // heads))  # (head, out, in)
        self.bias = nn.Parameter(torch.empty(heads, width // heads))

    def forward(self, x_BTW: Tensor) -> Tensor:
        B, T, W = x_BTW.shape
        x_HNK = x_BTW.reshape(B * T, self.weight.shape[0], -1).transpose(0, 1)
        return ((x_HNK @ self.weight.mT).transpose(0, 1) + self.bias).reshape(B, T, W)


class RecurrentBlock(nn.Module):
    """See the module's text."""

    param_classes = {"decay": "scalar"}

    def __init__(self, part: "RGLRU", ctx: BuildContext) -> None:
        super().__init__()
        width = part.width or 0
        self.x, self.y = nn.Linear(ctx.dim, width), nn.Linear(ctx.dim, width)
        self.o = nn.Linear(width, ctx.dim)
        self.conv = ShortConv("conv", width, part.kernel, bias=True, residual=False)
        self.input_gate, self.decay_gate = BlockDiagonal(part.heads or 1, width), BlockDiagonal(part.heads or 1, width)
        self.decay = nn.Parameter(torch.empty(width))
        squared = torch.linspace(0.9**2, 0.999**2, width, dtype=torch.float64)  # of a at an open gate, as published
        self.starts = {"decay": torch.log(torch.expm1(-squared.log() / 2 / SHARPNESS)).float()}

    def forward(self, x_BTD: Tensor, here: Here) -> Tensor:
        y_BTW = F.gelu(self.y(x_BTD), approximate="tanh")
        u_BTW = self.conv(self.x(x_BTD), here)
        log_a = -SHARPNESS * self.decay_gate(u_BTW).sigmoid().float() * F.softplus(self.decay.float())
        first_BT1 = self._first(here)
        strength = torch.where(first_BT1, 1.0, (1 - (2 * log_a).exp()).clamp(min=1e-12).sqrt())
        entry_BTW = (u_BTW * self.input_gate(u_BTW).sigmoid()).float() * strength
        h_BTW = self._scan(log_a.exp() * ~first_BT1, entry_BTW, here)
        return self.o(h_BTW.to(y_BTW.dtype) * y_BTW)  # type: ignore[no-any-return]

    @staticmethod
    def _first(here: Here) -> Tensor:
        """Where a document begins; (B or 1, T, 1)."""
        first = here.positions_BT == 0
        if here.mask.docs_BT is not None:
            first = first | ~same_document(here.mask.docs_BT, 1)
        return first[..., None]

    @staticmethod
    def _scan(a_BTW: Tensor, entry_BTW: Tensor, here: Here) -> Tensor:
        if here.memory is not None:
            state = here.memory.states["h"]
            entry_BTW = torch.cat((entry_BTW[:, :1] + a_BTW[:, :1] * state[:, None], entry_BTW[:, 1:]), 1)
        h_BTW = linear_scan(a_BTW.expand_as(entry_BTW), entry_BTW)
        if here.memory is not None:
            here.memory.states["h"].copy_(h_BTW[:, -1])
        return h_BTW


def linear_scan(a_BTW: Tensor, x_BTW: Tensor) -> Tensor:
    """h_t = a_t h_(t-1) + x_t with h_(-1) = 0, for all t."""
    step = 1
    while step < x_BTW.shape[1]:
        x_BTW = x_BTW + a_BTW * F.pad(x_BTW, (0, 0, step, 0))[:, :-step]
        a_BTW = a_BTW * F.pad(a_BTW, (0, 0, step, 0), value=0.0)[:, :-step]
        step *= 2
    return x_BTW


@attention.register("rglru", paper="De et al. 2024 (Griffin), arXiv 2402.19427; RecurrentGemma, arXiv 2404.07839")
class RGLRU(AttentionPart):
    """Griffin's recurrent block: short convolution and a real-gated linear recurrent unit instead of attention."""

    positional: ClassVar[bool] = False
    width: int | None = pydantic.Field(None, gt=0)
    """Width of the recurrence; the model's by default."""
    heads: int | None = pydantic.Field(None, gt=0)
    """Blocks of the gates' block-diagonal matrices; by default one per 64 of width."""
    kernel: int = pydantic.Field(4, gt=1)
    """Taps of the short convolution."""

    def resolve(self, dim: int, layers: int) -> Self:
        width = self.width or dim
        heads = self.heads or max(h for h in range(1, max(1, width // 64) + 1) if width % h == 0)
        if width % heads:
            raise refuse(self, f"heads={heads} doesn't divide width={width}.")
        return self.with_(width=width, heads=heads)

    def build(self, ctx: BuildContext) -> nn.Module:
        return RecurrentBlock(self, ctx)

    def cost(self, ctx: BuildContext) -> Cost:
        width, heads = self.width or 0, self.heads or 1
        rows = 3 * ctx.dim * width + 2 * width * width // heads
        extra = 2 * width + ctx.dim + width * (self.kernel + 1) + 2 * width + width
        return Cost(rows + extra, 2 * rows, state_values=self.room(ctx).state_values())

    def room(self, ctx: BuildContext) -> Room:
        width = self.width or 0
        return Room(states=(ShortConv.state("conv", width, self.kernel), State("h", (width,), fp32=True)))
