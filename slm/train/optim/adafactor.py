"""Adafactor as a part; how it steps is in `steps.adafactor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from slm.train.optim.base import NamedParameter, OptimPart, grouped, optim, without

if TYPE_CHECKING:
    import torch


FACTORED = ("matrix", "head", "embedding")
"""Tensor classes whose second moments are factored."""


@optim.register("adafactor", paper="Shazeer & Stern 2018, arXiv 1804.04235")
class Adafactor(OptimPart):
    """Second moments from rows and columns: next to no optimiser state."""

    momentum: float = pydantic.Field(0.0, ge=0, lt=1)
    """Decay per step of the running mean of updates; 0 keeps none."""
    decay_power: float = pydantic.Field(0.8, gt=0, le=1)
    """The second moments' decay at step t is 1 - t^-power."""
    clip_rms: float = pydantic.Field(1.0, gt=0)
    """Largest root mean square of a tensor's update, before the rate."""
    eps: float = pydantic.Field(1e-30, gt=0)
    """Added to squared gradients."""
    cautious: bool = False
    """Decay a weight only where the step moves it towards zero as well (Chen et al. 2025, arXiv 2510.12402)."""

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        from slm.train.optim.steps.adafactor import AdafactorOptimizer

        chosen = without(self, self.choose(parameters), "blocks")
        groups = grouped(
            (
                c.parameter.tensor,
                self.numbers(c, factored=float(c.parameter.tensor_class in FACTORED and not c.elementwise)),
            )
            for c in chosen
        )
        return [
            AdafactorOptimizer(
                groups, momentum=self.momentum, decay_power=self.decay_power, clip_rms=self.clip_rms, eps=self.eps,
                cautious=self.cautious,
            )
        ]  # fmt: skip
