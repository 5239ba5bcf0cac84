"""Auxiliary losses, added to the cross entropy."""

from __future__ import annotations

from typing import Annotated

import pydantic

from slm.config.registry import Registry
from slm.model.parts import ModelPart


class AuxPart(ModelPart):
    """An auxiliary loss."""

    @property
    def z_weight(self) -> float:
        """Weight of the squared log-partition."""
        return 0.0


aux = Registry("aux", AuxPart)
AuxSlot = Annotated[AuxPart, aux.field()]


@aux.register("none")
class NoAux(AuxPart):
    """Cross entropy alone."""


@aux.register("z_loss", paper="Chowdhery et al. 2022 (PaLM), arXiv 2204.02311")
class ZLoss(AuxPart):
    """weight x logsumexp(logits)^2, which keeps the logits from drifting."""

    weight: float = pydantic.Field(1e-4, gt=0)

    @property
    def z_weight(self) -> float:
        return self.weight
