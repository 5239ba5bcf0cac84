"""AdamW: steps scaled by running means of the gradient and of its square, with weight decay apart from the loss.

    m <- b1 m + (1 - b1) g        p <- p - lr (m' / (sqrt(v') + eps) + weight_decay p)
    v <- b2 v + (1 - b2) g^2      m', v': m, v divided by 1 - b^t

Sources: Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic
import torch
from torch import Tensor

from slm.config.base import Config
from slm.train.optim.base import Chosen, NamedParameter, OptimPart, grouped, optim, without
from slm.train.optim.guarded import GuardedOptimizer, Keep, adam_direction, clock, descend
from slm.train.optim.shards import local


class AdamNumbers(Config):
    """The numbers of Adam and its kin."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per step of the running means of the gradient and of its square."""
    eps: float = pydantic.Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    cautious: bool = False
    """Decay a weight only where the step moves it towards zero as well (Chen et al. 2025, arXiv 2510.12402)."""

    @pydantic.field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are at least 0 and below 1, got {betas}")
        return betas


@optim.register("adamw", paper="Loshchilov & Hutter 2019, arXiv 1711.05101")
class AdamW(AdamNumbers, OptimPart):
    """AdamW; weight decay on matrices and the head only."""

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        chosen = without(self, self.choose(parameters), "blocks", "elementwise")
        return [adamw(self, chosen, self)]

    @property
    def state_per_param(self) -> int:
        return 2


def adamw(part: OptimPart, chosen: Sequence[Chosen], numbers: AdamNumbers) -> torch.optim.Optimizer:
    """AdamW for these parameters of a part: torch's fused one, or ours where it can't do what is asked for."""
    groups = grouped((c.parameter.tensor, part.numbers(c, eps=numbers.eps * c.parameter.factor("eps"))) for c in chosen)
    if numbers.cautious:
        return CautiousAdamW(groups, betas=numbers.betas)
    return FusedAdamW(groups, betas=numbers.betas, fused=not chosen[0].parameter.tensor.is_meta)


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
