"""Lion: the sign of a momentum. One state per weight, and every weight moves by exactly the rate.

    u = sign(b1 m + (1 - b1) g)        p <- p - lr (u + weight_decay p)        m <- b2 m + (1 - b2) g

Since all updates have size 1, rates are 3 to 10 times smaller than AdamW's and decays as many times larger.

Source: Chen et al. 2023, "Symbolic discovery of optimization algorithms", arXiv 2302.06675.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, blend, descend
from slm.train.optim.steps.shards import local


class LionOptimizer(GuardedOptimizer):
    """Lion, element by element: shards need nothing."""

    def __init__(self, params: Any, *, lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.3, cautious: bool = False) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "cautious": cautious})

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(p)}

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        beta1, beta2 = group["betas"]
        for p, grad, moment in zip(params, self.grads(params), self.moments(group, params, "momentum"), strict=True):
            descend(local(p), grad.lerp(moment, beta1).sign_(), group, keep)
            blend(moment, grad, (1 - beta2) * keep)
