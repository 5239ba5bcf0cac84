"""How the model knows where a token stands."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import BuildContext, ModelPart, refuse

Tables = tuple[Tensor, Tensor]
"""cos and sin, shape (B or 1, 1, T, head_dim / 2), fp32."""


class PositionPart(ModelPart):
    """A position encoding that acts on queries and keys."""

    def build(self, ctx: BuildContext) -> "Position":
        raise NotImplementedError

    def cost(self, ctx: BuildContext) -> Cost:
        return Cost()


position = Registry("position", PositionPart)
PositionSlot = Annotated[PositionPart, position.field()]


class Position(nn.Module):
    """No position encoding. `tables` is called once per forward pass, `forward` once per layer."""

    def tables(self, positions_BT: Tensor) -> Tables | None:
        return None

    def forward(self, q_BHTK: Tensor, k_BGTK: Tensor, tables: Tables | None) -> tuple[Tensor, Tensor]:
        return q_BHTK, k_BGTK


class Rotary(Position):
    """Rotates pairs (i, i + K/2) of each head by the angle position x base^(-2i/K) (half-split convention)."""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def tables(self, positions_BT: Tensor) -> Tables:
        # Computed, not stored: on a meta-built or moved model a buffer may hold garbage; this costs one outer product.
        exponent = torch.arange(0, self.head_dim, 2, device=positions_BT.device, dtype=torch.float32) / self.head_dim
        angle_B1TK = (positions_BT.float()[..., None] * (1.0 / self.base**exponent)).unsqueeze(1)
        return angle_B1TK.cos(), angle_B1TK.sin()

    def forward(self, q_BHTK: Tensor, k_BGTK: Tensor, tables: Tables | None) -> tuple[Tensor, Tensor]:
        assert tables is not None
        cos, sin = (t.to(q_BHTK.dtype) for t in tables)
        return _rotate(q_BHTK, cos, sin), _rotate(k_BGTK, cos, sin)


def _rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


@position.register("rope", paper="Su et al. 2021, arXiv 2104.09864")
class Rope(PositionPart):
    """Rotary position embedding, half-split as in Hugging Face."""

    base: float = pydantic.Field(10_000.0, gt=0)

    def build(self, ctx: BuildContext) -> Position:
        if ctx.attention.rotary_dim % 2:
            raise refuse(self, f"rotates pairs, so head_dim must be even; it is {ctx.attention.rotary_dim}.")
        return Rotary(ctx.attention.rotary_dim, self.base)


@position.register("none", paper="Kazemnejad et al. 2023 (NoPE), arXiv 2305.19466")
class NoPosition(PositionPart):
    """No position encoding: order is known only through the causal mask."""

    def build(self, ctx: BuildContext) -> Position:
        return Position()
