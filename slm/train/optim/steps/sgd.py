"""SGD with momentum: the baseline that adaptive methods are measured against.

m <- b m + g        p <- p - lr (m + weight_decay p)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, descend
from slm.train.optim.steps.shards import local


class SGDOptimizer(GuardedOptimizer):
    """SGD with momentum, and weight decay apart from it."""

    def __init__(self, params: Any, *, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(p)}

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        b = group["momentum"]
        for p, grad, moment in zip(params, self.grads(params), self.moments(group, params, "momentum"), strict=True):
            moment.mul_(1 - (1 - b) * keep).add_(grad)  # the gradient of a step that is called off is zero
            descend(local(p), grad.add(moment, alpha=b) if group["nesterov"] else moment, group, keep)
