"""AdamW: steps scaled by running means of the gradient and of its square, with weight decay apart from the loss.

    m <- b1 m + (1 - b1) g        p <- p - lr (m' / (sqrt(v') + eps) + weight_decay p)
    v <- b2 v + (1 - b2) g^2      m', v': m, v divided by 1 - b^t

Sources: Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, adam_direction, clock, descend
from slm.train.optim.steps.shards import local


class FusedAdamW(torch.optim.AdamW):
    """torch's. It knows ``found_inf``, and shards."""

    @torch.no_grad()
    def init_state(self) -> None:
        """State of every parameter, as before the first step; what is there already stays."""
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p] |= _fresh(p)


class CautiousAdamW(GuardedOptimizer):
    """AdamW in plain operations, with cautious weight decay."""

    def __init__(self, params: Any, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1, cautious: bool = True) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "cautious": cautious}
        super().__init__(params, defaults)

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return _fresh(p)

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        for p, grad in zip(params, self.grads(params), strict=True):
            state = {key: local(t) for key, t in self.state_of(p, group).items()}
            descend(local(p), adam_direction(grad, state, group, keep), group, keep)


def _fresh(p: Tensor) -> dict[str, Tensor]:
    return {"step": clock(p), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
