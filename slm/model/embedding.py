"""From ids to vectors and back: the input embedding and the output head."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import ModelPart


class EmbeddingPart(ModelPart):
    """Input embedding and output head."""

    def build_embedding(self, vocab: int, dim: int) -> "Embedding":
        """The module that holds both."""
        raise NotImplementedError

    def costs(self, vocab: int, dim: int) -> tuple[Cost, Cost]:
        """Cost of the input embedding and of the head. A tied head has FLOPs and no parameters of its own."""
        raise NotImplementedError


embedding = Registry("embedding", EmbeddingPart)
EmbeddingSlot = Annotated[EmbeddingPart, embedding.field()]


class Embedding(nn.Module):
    """``weight`` (V, D) embeds; ``head_weight`` (V, D) scores."""

    param_classes = {"weight": "embedding", "head": "head"}

    def __init__(self, vocab: int, dim: int, tied: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, dim))
        self.head = None if tied else nn.Parameter(torch.empty(vocab, dim))

    @property
    def head_weight(self) -> Tensor:
        return self.weight if self.head is None else self.head

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return nn.functional.embedding(tokens_BT, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token: (..., D) -> (..., V)."""
        return nn.functional.linear(hidden, self.head_weight)


@embedding.register("tied", paper="Press & Wolf 2017, arXiv 1608.05859")
class Tied(EmbeddingPart):
    """One matrix embeds and scores."""

    def build_embedding(self, vocab: int, dim: int) -> Embedding:
        return Embedding(vocab, dim, tied=True)

    def costs(self, vocab: int, dim: int) -> tuple[Cost, Cost]:
        return Cost(params=vocab * dim), Cost(flops=2 * vocab * dim)


@embedding.register("untied")
class Untied(EmbeddingPart):
    """Separate input embedding and output head."""

    def build_embedding(self, vocab: int, dim: int) -> Embedding:
        return Embedding(vocab, dim, tied=False)

    def costs(self, vocab: int, dim: int) -> tuple[Cost, Cost]:
        return Cost(params=vocab * dim), Cost(params=vocab * dim, flops=2 * vocab * dim)
