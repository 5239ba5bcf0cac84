"""The objective with a teacher: (1 - w) cross entropy + w T^2 divergence, per target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slm.config.errors import ConfigError
from slm.data.loader import Batch
from slm.model.decoder import IGNORED, Decoder
from slm.model.divergence import Head, teacher_divergence
from slm.train.distill.config import Distill
from slm.train.distill.teacher import Teacher, open_cache, open_teacher
from slm.train.objective import LossModule

if TYPE_CHECKING:
    from slm.data.corpus import Corpus
    from slm.data.plan import Plan
    from slm.run import Run


class DistillLoss(LossModule):
    """Student and loss as one module. The teacher is asked in `inputs`, outside of ``forward``.

    What is logged as loss and bits per byte stays the student's plain cross entropy; the third result is the divergence, in
    nats and without w T^2.
    """

    def __init__(self, model: Decoder, distill: Distill, teacher: Teacher) -> None:
        super().__init__(model)
        self.distill, self.teacher = distill, teacher

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return *super().inputs(batch), *self.teacher.answer(batch)

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, positions_BT: Tensor, docs_BT: Tensor, *answer: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.training:
            return super().forward(tokens_BT, targets_BT, positions_BT, docs_BT)
        d, embedding = self.distill, self.model.embedding
        factor = d.weight * d.temperature**2

        def guide(hidden_BTD: Tensor) -> Tensor:
            return factor * teacher_divergence(
                Head.of(embedding),
                embedding.features(hidden_BTD).flatten(0, -2),
                self.teacher.known(answer),
                (targets_BT != IGNORED).flatten(),
                kind=d.divergence,
                temperature=d.temperature,
                top_k=d.top_k,
            )

        sums = self.model.training_loss(
            tokens_BT, targets_BT, positions_BT=positions_BT, docs_BT=docs_BT, ce_weight=1 - d.weight, guide=guide
        )
        assert sums.guided is not None
        return sums.loss, sums.nll, sums.guided / factor


def loss_module(run: "Run", model: Decoder, corpus: "Corpus", plan: "Plan", rows: int) -> LossModule:
    """The objective of a run that reads ``rows`` rows; a teacher is loaded here, on the model's device.

    Raises:
        ConfigError: the teacher isn't the one that the run is defined with, or has another tokenizer, vocabulary or context.
        RunError: its checkpoint or cache is damaged.
    """
    distill = run.train.distill
    if distill is None:
        return LossModule(model)
    check_top_k(distill.top_k, run.model.vocab_)
    if distill.cache is not None:
        return DistillLoss(model, distill, open_cache(run, corpus, plan, rows))
    assert distill.teacher is not None
    device: torch.device = model.embedding.weight.device
    return DistillLoss(model, distill, open_teacher(run, corpus, distill.teacher, distill.teacher_hash, device))


def check_top_k(top_k: int | None, vocab: int) -> None:
    """Raise `ConfigError` if nothing is left to be the rest."""
    if top_k is not None and top_k >= vocab:
        raise ConfigError(
            f"train.distill.top_k={top_k} tells all {vocab} tokens of the vocabulary apart, with nothing left for the rest. Leave it out to "
            f"use the whole distribution, or take a smaller one."
        )
