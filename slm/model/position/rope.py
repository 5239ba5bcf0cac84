"""Rotary position embedding, half-split as in Hugging Face."""

from __future__ import annotations

import pydantic
import torch
from torch import Tensor

from slm.model.parts import BuildContext, refuse
from slm.model.position.base import Position, PositionPart, Tables, position
from slm.model.position.rope_scaling import RopeScaling, RopeScalingSlot


class Rotary(Position):
    """Rotates pairs (i, i + R/2) of the first R numbers of each head by the angle position x base^(-2i/R)."""

    def __init__(self, rotated: int, base: float, scaling: RopeScaling | None) -> None:
        super().__init__()
        self.rotated, self.base, self.scaling = rotated, base, scaling

    def tables(self, positions_BT: Tensor) -> Tables:
        # Computed, not stored: on a meta-built or moved model a buffer may hold garbage; this costs one outer product.
        exponent = torch.arange(0, self.rotated, 2, device=positions_BT.device, dtype=torch.float32) / self.rotated
        frequency_R, length = 1.0 / self.base**exponent, 1.0
        if self.scaling is not None:
            frequency_R, length = self.scaling.stretch(frequency_R, self.base, positions_BT)  # type: ignore[assignment]
        angle_B1TR = (positions_BT.float()[..., None] * frequency_R).unsqueeze(1)
        return angle_B1TR.cos() * length, angle_B1TR.sin() * length

    def rotate(self, x_BHTK: Tensor, tables: Tables | None) -> Tensor:
        assert tables is not None
        cos, sin = (t.to(x_BHTK.dtype) for t in tables)
        if self.rotated == x_BHTK.shape[-1]:
            a, b = x_BHTK.chunk(2, dim=-1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        a, b, rest = x_BHTK.split((self.rotated // 2, self.rotated // 2, x_BHTK.shape[-1] - self.rotated), dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


@position.register("rope", paper="Su et al. 2021, arXiv 2104.09864")
class Rope(PositionPart):
    """Rotary position embedding."""

    base: float = pydantic.Field(10_000.0, gt=1)
    """Frequencies fall from 1 to 1/base; often called theta."""
    fraction: float = pydantic.Field(1.0, gt=0, le=1)
    """Share of each head that is rotated, from its beginning (GPT-NeoX); the rest carries no position."""
    scaling: RopeScalingSlot = None
    """How it is stretched to contexts longer than it was trained for."""

    def rotated(self, width: int) -> int:
        """How many of ``width`` numbers are rotated."""
        return int(width * self.fraction)

    def check(self, ctx: BuildContext) -> None:
        width = ctx.attention.rotary_dim
        if width and (self.rotated(width) % 2 or not self.rotated(width)):
            raise refuse(
                self,
                f"rotates pairs, so an even part of each head must be rotated; fraction={self.fraction} of head_dim={width} is "
                f"{self.rotated(width)}.",
            )
        if self.scaling is not None and width:
            self.scaling.check_width(self.rotated(width))

    def build(self, ctx: BuildContext) -> Position:
        return Rotary(self.rotated(ctx.attention.rotary_dim), self.base, self.scaling)
