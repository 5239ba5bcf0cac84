"""Learned absolute positions: a vector per position, added to the embeddings."""

from __future__ import annotations

import pydantic
import torch
from torch import Tensor, nn

from slm.config.errors import ConfigError
from slm.cost.cost import Cost
from slm.model.parts import BuildContext
from slm.model.position.base import Position, PositionPart, position


class LearnedPositions(Position):
    """Adds row ``offset + position`` of a table."""

    param_classes = {"weight": "embedding"}
    axes = {"weight": (None, "dim")}

    def __init__(self, context: int, dim: int, offset: int) -> None:
        super().__init__()
        self.context, self.offset = context, offset
        self.weight = nn.Parameter(torch.empty(offset + context, dim))

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        return x_BTD + nn.functional.embedding(positions_BT + self.offset, self.weight).to(x_BTD.dtype)

    def check_length(self, length: int) -> None:
        """Raise `ConfigError` past the table's end."""
        if length > self.context:
            raise ConfigError(f"Learned positions end at {self.context} tokens; {length} are asked for.")


@position.register("learned", paper="Vaswani et al. 2017; Radford et al. 2018 (GPT)")
class Learned(PositionPart):
    """A learned vector per position, added to the embeddings; nothing past ``model.context``."""

    offset: int = pydantic.Field(0, ge=0)
    """Rows before position 0 (OPT has 2, unused)."""

    @property
    def at_input(self) -> bool:
        return True

    def build(self, ctx: BuildContext) -> Position:
        return LearnedPositions(ctx.model.context_, ctx.dim, self.offset)

    def cost(self, ctx: BuildContext) -> Cost:
        return Cost(params=(ctx.model.context_ + self.offset) * ctx.dim)
