"""The attention slot: what every token mixer answers for."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from torch import nn

from slm.config.registry import Registry
from slm.model.attention.scores import Wishes
from slm.model.cache import Room
from slm.model.parts import BuildContext, ModelPart, refuse


class AttentionPart(ModelPart):
    """Mixes tokens. Its module is called as ``module(x_BTD, here) -> (B, T, D)``; what ``here`` has: `slm.model.sequence.Here`."""

    positional: ClassVar[bool] = True
    """Whether it uses the position encoding; a recurrence doesn't."""

    def build(self, ctx: BuildContext) -> nn.Module:
        raise NotImplementedError

    @property
    def rotary_dim(self) -> int:
        """Width of what a rotary position encoding gets of each head; 0 where there is none."""
        return 0

    @property
    def qkv_width(self) -> int:
        """Width of queries, keys and values together, for a short convolution over them (canon point B); 0: no such point."""
        return 0

    def narrowed(self, heads: int, kv_heads: int | None) -> Self:
        """This part with fewer heads of the same width, for a model that is pruned: `slm.model.axes` says what that cuts.

        ``kv_heads``: None leaves them to the part.
        """
        raise refuse(self, "it doesn't say how its heads are cut, so heads can't be pruned.")

    def wishes(self, ctx: BuildContext) -> Wishes | None:
        """What it asks of softmax attention, so that a run can say beforehand which backend it takes; None: nothing, or it doesn't tell."""
        return None

    def room(self, ctx: BuildContext) -> Room:
        """What one layer caches."""
        raise NotImplementedError


attention = Registry("attention", AttentionPart)
AttentionSlot = Annotated[AttentionPart, attention.field()]
