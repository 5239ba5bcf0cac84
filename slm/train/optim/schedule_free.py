"""Schedule-free AdamW as a part; how it steps, and which weights are when in the model, is in `steps.schedule_free`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from slm.train.optim.adamw import AdamNumbers
from slm.train.optim.base import NamedParameter, OptimPart, grouped, optim, without

if TYPE_CHECKING:
    import torch


@optim.register("schedule_free", paper="Defazio et al. 2024, arXiv 2405.15682")
class ScheduleFree(AdamNumbers, OptimPart):
    """AdamW that averages its iterates instead of lowering its rate; for ``schedule: constant``."""

    lr: float = pydantic.Field(2.5e-3, gt=0)
    """Peak learning rate; the schedule scales it. 1 to 10 times AdamW's."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Share of the average in the weights that are trained, and decay per step of the mean of squared gradients."""
    power: float = pydantic.Field(0.0, ge=0)
    """The average's weights grow like step^power."""
    lr_power: float = pydantic.Field(2.0, ge=0)
    """The average's weights grow like the largest rate so far to this power: little of the warm-up stays."""

    @pydantic.model_validator(mode="after")
    def _has_an_average(self) -> "ScheduleFree":
        if self.betas[0] == 0 or self.cautious:
            raise ValueError("schedule_free needs betas[0] > 0 and cautious=false")
        return self

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        from slm.train.optim.steps.schedule_free import ScheduleFreeOptimizer

        chosen = without(self, self.choose(parameters), "blocks", "elementwise")
        groups = grouped(
            (c.parameter.tensor, self.numbers(c, eps=self.eps * c.parameter.factor("eps"))) for c in chosen
        )
        return [ScheduleFreeOptimizer(groups, betas=self.betas, power=self.power, lr_power=self.lr_power)]
