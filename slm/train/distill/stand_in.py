"""A teacher that says nothing in particular, for counting what a step with one holds (`slm.train.footprint`)."""

from __future__ import annotations

import torch
from torch import Tensor

from slm.data.loader import Batch
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.model.divergence import KINDS, FromModel, Head, Outcomes
from slm.train.distill.config import Distill
from slm_kernels.linear_kl import workspace_bytes


class Told:
    """What a teacher of the shape ``teacher``, or a cache where that is None, says of so many ``tokens``: tensors of the right sizes.

    ``tensors``: what it consists of. Made under a fake mode, it takes no memory.
    """

    def __init__(self, distill: Distill, teacher: Model | None, tokens: int) -> None:
        self.divergence = distill.divergence
        if teacher is None:
            assert distill.top_k is not None  # `Distill` asks for it with a cache
            ids_NK = torch.zeros(tokens, distill.top_k, dtype=torch.int64)
            self.said: FromModel | Outcomes = Outcomes(ids_NK, torch.zeros(tokens, distill.top_k + 1))
            self.tensors: list[Tensor] = list(self.said)
            return
        embedding = teacher.embedding.build(teacher.contexts[0]).requires_grad_(False)
        features_NE = torch.zeros(tokens, embedding.head_weight.shape[1])
        self.said = FromModel(features_NE, Head.of(embedding))
        self.tensors = [features_NE, *embedding.parameters()]

    def answer(self, batch: Batch) -> tuple[Tensor, ...]:
        """Nothing: `known` knows it all."""
        return ()

    def known(self, answer: tuple[Tensor, ...]) -> FromModel | Outcomes:
        """See the class."""
        return self.said

    def workspace(self, student: Decoder, dtype: torch.dtype, device: str) -> int:
        """Bytes that `slm_kernels.linear_kl` needs for a moment."""
        if isinstance(self.said, Outcomes):
            return 0  # another way, of operations that are seen one by one
        (tokens, width), (vocab, own) = self.said.features_NE.shape, student.embedding.head_weight.shape
        return workspace_bytes(tokens, vocab, own, width, KINDS[self.divergence], dtype, device)
