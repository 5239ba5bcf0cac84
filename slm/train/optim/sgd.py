"""SGD as a part; how it steps is in `steps.sgd`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from slm.config.errors import ConfigError
from slm.train.optim.base import NamedParameter, OptimPart, grouped, optim, without

if TYPE_CHECKING:
    import torch


@optim.register("sgd", paper="Polyak 1964; Sutskever et al. 2013")
class SGD(OptimPart):
    """Gradient descent with momentum: a baseline."""

    lr: float = pydantic.Field(0.1, gt=0)
    """Peak learning rate; the schedule scales it."""
    weight_decay: float = pydantic.Field(1e-4, ge=0)
    """Decoupled weight decay of matrices and the head."""
    momentum: float = pydantic.Field(0.9, ge=0, lt=1)
    """Decay per step of the running sum of gradients."""
    nesterov: bool = True
    """Step along the gradient plus ``momentum`` times the sum, instead of the sum."""

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        from slm.train.optim.steps.sgd import SGDOptimizer

        for p in parameters:
            if p.factor("lr") != 1 or p.factor("weight_decay") != 1:
                raise ConfigError(
                    "train.optim=sgd doesn't go with this model.parametrization: its factors on learning rates are those of optimisers "
                    "whose steps don't grow with the gradient. Use model/parametrization=standard, or another optimiser."
                )
        chosen = without(self, self.choose(parameters), "blocks", "elementwise")
        groups = grouped((c.parameter.tensor, self.numbers(c)) for c in chosen)
        return [SGDOptimizer(groups, momentum=self.momentum, nesterov=self.nesterov)]
