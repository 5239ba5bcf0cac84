"""The position slot: what every position encoding answers for, and the one that does nothing."""

from __future__ import annotations

from typing import Annotated, ClassVar

from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import BuildContext, ModelPart

Tables = tuple[Tensor, Tensor]
"""cos and sin, shape (B or 1, 1, T, rotated / 2), fp32."""


class PositionPart(ModelPart):
    """A position encoding."""

    per_head: ClassVar[bool] = False
    """Whether it treats heads differently by their number, so that none can be taken out."""

    @property
    def at_input(self) -> bool:
        """Whether it acts on the embeddings, once for the whole model, and not inside of layers."""
        return False

    def build(self, ctx: BuildContext) -> "Position":
        raise NotImplementedError

    def cost(self, ctx: BuildContext) -> Cost:
        return Cost()


position = Registry("position", PositionPart)
PositionSlot = Annotated[PositionPart, position.field()]


class Position(nn.Module):
    """No position encoding, and the interface of all. `tables` is called once per forward pass, the rest per layer."""

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """The embeddings with positions added."""
        return x_BTD

    def tables(self, positions_BT: Tensor) -> Tables | None:
        """What `rotate` needs, for these positions."""
        return None

    def rotate(self, x_BHTK: Tensor, tables: Tables | None) -> Tensor:
        """Queries or keys, turned by their positions."""
        return x_BHTK

    def slopes(self, heads: int, x: Tensor) -> Tensor | None:
        """(H,) how much a score falls per token of distance, on the device and in the dtype of ``x``; None: not at all."""
        return None


@position.register("none", paper="Kazemnejad et al. 2023 (NoPE), arXiv 2305.19466")
class NoPosition(PositionPart):
    """No position encoding: order is known only through the causal mask."""

    def build(self, ctx: BuildContext) -> Position:
        return Position()
