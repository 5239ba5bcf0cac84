"""`Model`: the ``model`` section. A model is its width, its depth, and a part in every slot."""

from __future__ import annotations

from functools import cached_property
from typing import Self

import pydantic

from slm.config.base import Config
from slm.cost.cost import Cost, ModelCost
from slm.model.attention import AttentionSlot
from slm.model.attention.softmax import GroupedQuery
from slm.model.auxiliary import AuxSlot, NoAux
from slm.model.embedding import EmbeddingSlot, Tied
from slm.model.ffn import FeedForwardSlot, SwiGLU
from slm.model.init import InitSlot, Normal
from slm.model.layout import LayoutSlot, Uniform
from slm.model.norm import NormSlot, RMSNormPart
from slm.model.parts import BuildContext
from slm.model.position import PositionSlot, Rope
from slm.model.residual import PreNorm, ResidualSlot

RESOLVED = ("attention", "ffn", "norm", "position", "residual", "embedding", "layout", "init", "aux")
"""The slots. Each part's open fields are filled from the model's width and depth when the model is validated."""


class Model(Config):
    """A decoder-only transformer."""

    dim: int = pydantic.Field(gt=0)
    """Width of the residual stream."""
    layers: int = pydantic.Field(gt=0)
    vocab: int | None = pydantic.Field(None, gt=1)
    """Rows of the embedding; None takes the tokenizer's."""
    context: int | None = pydantic.Field(None, gt=0)
    """Longest sequence the model is meant for; None takes ``data.seq_len``."""
    attention: AttentionSlot = GroupedQuery()
    ffn: FeedForwardSlot = SwiGLU()
    norm: NormSlot = RMSNormPart()
    position: PositionSlot = Rope()
    residual: ResidualSlot = PreNorm()
    embedding: EmbeddingSlot = Tied()
    layout: LayoutSlot = Uniform()
    init: InitSlot = Normal()
    aux: AuxSlot = NoAux()
    source: str = ""
    """Where a preset's numbers are from."""

    @pydantic.model_validator(mode="after")
    def _resolve_parts(self) -> Self:
        for slot in RESOLVED:  # the model is frozen for its users; resolving its parts is part of making it
            self.__dict__[slot] = getattr(self, slot).resolve(self.dim, self.layers)
        return self

    @property
    def vocab_(self) -> int:
        """``vocab`` once it is known. Raises ValueError before."""
        if self.vocab is None:
            raise ValueError("model.vocab isn't known yet: it is the tokenizer's, and joined in by Run")
        return self.vocab

    @cached_property
    def contexts(self) -> list[BuildContext]:
        """What each layer is built from."""
        return self.layout.layers(self)

    def costs(self, context: int | None = None) -> ModelCost:
        """Parameters, FLOPs per token and cache of the whole model at ``context`` tokens (the model's own by default)."""
        embedding, head = self.embedding.costs(self.vocab_, self.dim)
        first = self.contexts[0]
        parts = {
            "embedding": embedding,
            "attention": sum((c.attention.cost(c) for c in self.contexts), Cost()),
            "ffn": sum((c.ffn.cost(c) for c in self.contexts), Cost()),
            "norms": sum((self.residual.cost(c) for c in self.contexts), Cost()) + self.norm.cost(first),
            "position": self.position.cost(first),
            "head": head,
        }
        return ModelCost(parts=parts, context=context or self.context or 2048)
