"""SGD with momentum: the baseline that adaptive methods are measured against.

m <- b m + g        p <- p - lr (m + weight_decay p)
"""

from __future__ import annotations

from typing import Any

import pydantic
import torch
from torch import Tensor

from slm.config.errors import ConfigError
from slm.model.parametrization import Rates
from slm.train.optim.base import NamedParameter, OptimPart, grouped, optim, without
from slm.train.optim.guarded import GuardedOptimizer, Keep, descend
from slm.train.optim.shards import local


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
        for p in parameters:
            if p.rates not in (None, Rates()):
                raise ConfigError(
                    "train.optim=sgd doesn't go with this model.parametrization: its factors on learning rates are those of optimisers "
                    "whose steps don't grow with the gradient. Use model/parametrization=standard, or another optimiser."
                )
        chosen = without(self, self.choose(parameters), "blocks", "elementwise")
        groups = grouped((c.parameter.tensor, self.numbers(c)) for c in chosen)
        return [SGDOptimizer(groups, momentum=self.momentum, nesterov=self.nesterov)]

    @property
    def state_per_param(self) -> int:
        return 1


class SGDOptimizer(GuardedOptimizer):
    """SGD with momentum, and weight decay apart from it."""

    def __init__(self, params: Any, *, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(p)}

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        b = group["momentum"]
        for p, grad, moment in zip(params, self.grads(params), self.moments(group, params, "momentum"), strict=True):
            moment.add_((grad - moment * (1 - b)).mul_(keep))
            descend(local(p), grad.add(moment, alpha=b) if group["nesterov"] else moment.clone(), group, keep)
