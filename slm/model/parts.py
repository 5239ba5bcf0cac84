"""What all parts of a model share: the base class, and what a part is told when it is built.

A part is a config that can `resolve` its open fields from the model's width, `check` that it fits the parts
around it, `build` its module, and answer for its `cost`. One part object serves many layers: it holds numbers,
never weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from torch import nn

from slm.config.errors import ConfigError
from slm.config.registry import Part
from slm.cost.cost import Cost

if TYPE_CHECKING:
    from slm.model.attention.base import AttentionPart
    from slm.model.config import Model
    from slm.model.ffn.base import FeedForwardPart
    from slm.model.position.base import PositionPart


@dataclass(frozen=True)
class BuildContext:
    """Where a part is built: the model around it, and the layer's own parts."""

    model: "Model" = field(compare=False, repr=False)  # it holds its contexts: comparing it here would never end
    layer: int
    """Place in the order of execution; each place has a cache of its own."""
    attention: "AttentionPart"
    ffn: "FeedForwardPart"
    position: "PositionPart"
    block: int
    """Which stored block this is: places with equal numbers share all weights."""
    ffn_block: int
    """Which block's feed-forward is used: the block's own, unless a layout shares it."""

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.model.dim

    @property
    def shares_ffn(self) -> bool:
        """Whether the feed-forward is stored in another block."""
        return self.ffn_block != self.block

    def norm(self, width: int | None = None) -> nn.Module:
        """A new normalisation of the model's kind, over ``width`` (the residual stream by default)."""
        return self.model.norm.build(width or self.dim)


class ModelPart(Part):
    """A part of a model."""

    def resolve(self, dim: int, layers: int) -> Self:
        """Fill fields that are None from the model's width and depth. Raises `ConfigError` on an impossible shape."""
        return self

    def check(self, ctx: BuildContext) -> None:
        """Raise `ConfigError`, with the reason, if this part can't work with the layer's other parts."""

    def canonical(self) -> "ModelPart":
        """The most general part that computes the same: ``mha`` is ``gqa`` with as many key/value heads as heads."""
        return self

    def cost(self, ctx: BuildContext) -> Cost:
        """Parameters, forward FLOPs per token and cached values of one layer's worth of this part."""
        raise NotImplementedError


def refuse(part: Part, why: str) -> ConfigError:
    """An error about a part's shape, or about a combination."""
    return ConfigError(f"model.{part.slot} ({part.part_name}): {why}")
