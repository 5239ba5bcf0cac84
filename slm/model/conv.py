"""Short causal convolutions: each channel mixes with its last few values, within the document.

As a slot they are *canon layers*, added at up to four points of a block: A before the attention, B on its queries, keys
and values, C before the feed-forward, D on its inner activations. As a module they also stand in recurrences.
"""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.cache import State
from slm.model.parts import BuildContext, ModelPart, refuse
from slm.model.sequence import Here
from slm_kernels import fused, short_conv


class ShortConv(nn.Module):
    """y_t = sum_j weight[:, kernel - 1 - j] x_(t-j) (+ bias) (+ x_t), over taps j that lie in the same document."""

    param_classes = {"weight": "conv", "bias": "bias"}

    def __init__(self, name: str, width: int, kernel: int, *, bias: bool, residual: bool) -> None:
        super().__init__()
        self.name, self.kernel, self.residual = name, kernel, residual
        self.weight = nn.Parameter(torch.empty(width, kernel))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, x_BTC: Tensor, here: Here) -> Tensor:
        docs_BT = here.mask.docs_BT
        if here.memory is None and fused("short_conv", x_BTC, self.weight, self.bias, docs_BT, self.residual):
            docs_BT = None if docs_BT is None else docs_BT.expand(x_BTC.shape[:2])
            return short_conv(x_BTC, self.weight, self.bias, docs_BT, residual=self.residual)
        T, reach = x_BTC.shape[1], self.kernel - 1
        before = x_BTC.new_zeros(x_BTC.shape[0], reach, x_BTC.shape[2])
        if here.memory is not None:
            before = here.memory.states[self.name].to(x_BTC.dtype)
        wide_BTC = torch.cat((before, x_BTC), 1)
        if here.memory is not None:
            here.memory.states[self.name].copy_(wide_BTC[:, wide_BTC.shape[1] - reach :])
        weight = self.weight.to(x_BTC.dtype)
        y_BTC = x_BTC * weight[:, reach]
        for j in range(1, self.kernel):
            tap = wide_BTC[:, reach - j : reach - j + T]
            if docs_BT is not None:
                tap = tap * same_document(docs_BT, j)[..., None].to(tap.dtype)
            y_BTC = y_BTC + tap * weight[:, reach - j]
        if self.bias is not None:
            y_BTC = y_BTC + self.bias.to(y_BTC.dtype)
        return x_BTC + y_BTC if self.residual else y_BTC

    @staticmethod
    def state(name: str, width: int, kernel: int) -> State:
        """What a cache keeps for one."""
        return State(name, (kernel - 1, width))


def same_document(docs_BT: Tensor, back: int) -> Tensor:
    """Whether the token ``back`` places before is of the same document; (B, T)."""
    same = torch.zeros_like(docs_BT, dtype=torch.bool)
    before = max(0, docs_BT.shape[1] - back)  # none in a row that is no longer than that
    same[:, back:] = docs_BT[:, back:] == docs_BT[:, :before]
    return same


class ConvPart(ModelPart):
    """Short convolutions at the points of a block. This one: none."""

    def build(self, point: str, width: int) -> ShortConv | None:
        """The convolution at a point over ``width`` channels, if there is one."""
        return None

    def point_cost(self, point: str, width: int) -> Cost:
        return Cost()

    def states(self, ctx: BuildContext) -> tuple[State, ...]:
        """What one layer caches."""
        return ()


conv = Registry("conv", ConvPart)
ConvSlot = Annotated[ConvPart, conv.field()]


@conv.register("none")
class NoConv(ConvPart):
    """No convolutions."""


@conv.register("canon", paper="Allen-Zhu 2025 (Physics of Language Models 4.1, Canon layers)")
class Canon(ConvPart):
    """Residual depthwise convolutions at the points A (attention input), B (q, k, v), C (feed-forward input), D (inner)."""

    points: str = pydantic.Field("ABCD", pattern="^A?B?C?D?$", min_length=1)
    """Where in the block: letters of ABCD."""
    kernel: int = pydantic.Field(4, gt=1)
    """Taps: the token itself and those before it."""
    bias: bool = False
    """A bias per channel."""
    residual: bool = True
    """Add the input to what comes out."""

    def build(self, point: str, width: int) -> ShortConv | None:
        if point not in self.points:
            return None
        return ShortConv(f"conv.{point}", width, self.kernel, bias=self.bias, residual=self.residual)

    def point_cost(self, point: str, width: int) -> Cost:
        if point not in self.points:
            return Cost()
        return Cost(params=width * (self.kernel + self.bias), state_values=width * (self.kernel - 1))

    def states(self, ctx: BuildContext) -> tuple[State, ...]:
        widths = {"A": ctx.dim, "B": ctx.attention.qkv_width, "C": ctx.dim, "D": ctx.ffn.inner_width}
        return tuple(ShortConv.state(f"conv.{p}", widths[p], self.kernel) for p in self.points)

    def check(self, ctx: BuildContext) -> None:
        for point, part, width in (("B", ctx.attention, ctx.attention.qkv_width), ("D", ctx.ffn, ctx.ffn.inner_width)):
            if point in self.points and not width:
                rest = self.points.replace(point, "") or "A"
                raise refuse(
                    self,
                    f"{part.slot} {part.part_name!r} has no point {point}. Choose other points, such as points={rest}.",
                )
