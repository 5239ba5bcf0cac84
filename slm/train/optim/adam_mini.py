"""Adam-mini as a part; how it steps is in `steps.adam_mini`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slm.train.optim.adamw import AdamNumbers
from slm.train.optim.base import NamedParameter, OptimPart, grouped, optim, without

if TYPE_CHECKING:
    import torch


ROWWISE = ("matrix", "head", "embedding")
"""Tensor classes with one second moment per row."""


@optim.register("adam_mini", paper="Zhang et al. 2024, arXiv 2406.16793")
class AdamMini(AdamNumbers, OptimPart):
    """AdamW with one second moment per row: half of its state."""

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        from slm.train.optim.steps.adam_mini import AdamMiniOptimizer

        chosen = without(self, self.choose(parameters), "blocks")
        groups = grouped(
            (c.parameter.tensor, self.numbers(c, eps=self.eps * c.parameter.factor("eps"), rowwise=float(c.parameter.tensor_class in ROWWISE and not c.elementwise)))
            for c in chosen
        )  # fmt: skip
        return [AdamMiniOptimizer(groups, betas=self.betas, cautious=self.cautious)]
