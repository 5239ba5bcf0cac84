"""The attention slot: what every attention answers for."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from slm.config.registry import Registry
from slm.model.parts import BuildContext, ModelPart


class AttentionPart(ModelPart):
    """Mixes tokens. Its module is called as ``module(x_BTD, sequence, layer) -> (B, T, D)``."""

    def build(self, ctx: BuildContext) -> nn.Module:
        raise NotImplementedError

    @property
    def rotary_dim(self) -> int:
        """Width that a rotary position encoding rotates in each head."""
        raise NotImplementedError

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(kv_heads, key width, value width) of the cache of one layer."""
        raise NotImplementedError


attention = Registry("attention", AttentionPart)
AttentionSlot = Annotated[AttentionPart, attention.field()]
