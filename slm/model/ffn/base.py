"""The feed-forward slot: what every feed-forward answers for."""

from __future__ import annotations

from typing import Annotated, Self

import pydantic
from torch import nn

from slm.config.registry import Registry
from slm.model.parts import BuildContext, ModelPart, refuse


class FeedForwardPart(ModelPart):
    """A feed-forward. Its module is called as ``module(x_BTD, here) -> (B, T, D)``; what ``here`` has: `slm.model.sequence.Here`."""

    hidden: int | None = pydantic.Field(None, gt=0)
    """Inner width; by default chosen so that all kinds have about 8 dim^2 parameters."""

    @property
    def inner_width(self) -> int:
        """Width of what stands before the activation, for a short convolution over it (canon point D); 0: no such point."""
        return 0

    def build(self, ctx: BuildContext) -> nn.Module:
        raise NotImplementedError

    def narrowed(self, hidden: int) -> Self:
        """This part with fewer inner channels, for a model that is pruned: `slm.model.axes` says what that cuts."""
        raise refuse(self, "it doesn't say how its inner channels are cut, so hidden can't be pruned.")


ffn = Registry("ffn", FeedForwardPart)
FeedForwardSlot = Annotated[FeedForwardPart, ffn.field()]
