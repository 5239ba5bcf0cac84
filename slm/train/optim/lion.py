"""Lion as a part; how it steps is in `steps.lion`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from slm.train.optim.base import NamedParameter, OptimPart, grouped, optim, without

if TYPE_CHECKING:
    import torch


@optim.register("lion", paper="Chen et al. 2023, arXiv 2302.06675")
class Lion(OptimPart):
    """The sign of a momentum: half of AdamW's state."""

    lr: float = pydantic.Field(3e-4, gt=0)
    """Peak learning rate; the schedule scales it. 3 to 10 times below AdamW's."""
    weight_decay: float = pydantic.Field(0.3, ge=0)
    """Decoupled weight decay of matrices and the head. 3 to 10 times above AdamW's."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Share of the momentum in the update, and its decay per step. (0.95, 0.98) is steadier on language."""
    cautious: bool = False
    """Decay a weight only where the step moves it towards zero as well (Chen et al. 2025, arXiv 2510.12402)."""

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        from slm.train.optim.steps.lion import LionOptimizer

        chosen = without(self, self.choose(parameters), "blocks", "elementwise")
        groups = grouped((c.parameter.tensor, self.numbers(c)) for c in chosen)
        return [LionOptimizer(groups, betas=self.betas, cautious=self.cautious)]
