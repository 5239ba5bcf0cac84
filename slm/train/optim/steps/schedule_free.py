"""Schedule-free AdamW: an average of the iterates in place of a decaying rate.

    y = (1 - b1) z + b1 x              where gradients are taken: the weights while training
    z <- z - lr u(y)                   u: Adam's direction without momentum, and weight decay, both at y
    x <- (1 - c) x + c z               the average, weighted by lr^2: the weights to be used

No length of training has to be known, so a run can be stopped, or go on, at any step; use it with ``schedule: constant`` (with a
warm-up). Kept are y (in the model), z and the second moments.

**Which weights are in the model.** `eval_mode` puts x there, and y aside among the state (``train_weights``); `train_mode` brings y back
bit for bit. A checkpoint that is written in between has x as the model's weights, for all who only read it, and what a resume needs
among the optimiser's state. A step in evaluation mode is an error.

Source: Defazio et al. 2024, "The road less scheduled", arXiv 2405.15682.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, blend, clock, debias, take
from slm.train.optim.steps.shards import local


class ScheduleFreeOptimizer(GuardedOptimizer):
    """Schedule-free AdamW, element by element: shards need nothing."""

    def __init__(
        self, params: Any, *, lr: float = 2.5e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.1, power: float = 0.0, lr_power: float = 2.0,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "power": power, "lr_power": lr_power}  # fmt: skip
        super().__init__(params, defaults)

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        wide = torch.float32 if p.device.type == "mps" else torch.float64  # a sum of a million equal numbers
        scalars = {"step": clock(p), "largest_lr": clock(p), "weight_sum": torch.zeros((), dtype=wide, device=p.device)}
        return scalars | {"z": p.detach().clone(), "exp_avg_sq": torch.zeros_like(p)}

    @property
    def evaluating(self) -> bool:
        """Whether the averages are in the model."""
        return any("train_weights" in state for state in self.state.values())

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        if self.evaluating:
            raise RuntimeError("schedule_free: a step while the averages are in the model; call training_weights first")
        beta1, beta2 = group["betas"]
        for p, grad in zip(params, self.grads(params), strict=True):
            state = self.state_of(p, group)
            y, z, v, step = local(p), local(state["z"]), local(state["exp_avg_sq"]), state["step"]
            share = self._share(state, group, keep)
            blend(v, grad.square(), (1 - beta2) * keep)
            u = grad.div_((v / debias(beta2, step)).sqrt_().add_(group["eps"])).add_(y, alpha=group["weight_decay"])
            blend(y, z, share * keep)
            take(y, u, group["lr"], (1 - beta1 * (1 - share)) * keep)
            take(z, u, group["lr"], keep)

    @staticmethod
    def _share(state: dict[str, Tensor], group: dict[str, Any], keep: Keep) -> Tensor:
        """c: the share of this iterate in the average. Counts the step."""
        state["step"].add_(keep)
        torch.maximum(
            state["largest_lr"], torch.full_like(state["largest_lr"], group["lr"]) * keep, out=state["largest_lr"]
        )
        weight = state["step"] ** group["power"] * state["largest_lr"] ** group["lr_power"] * keep
        state["weight_sum"].add_(weight)
        return (weight / state["weight_sum"].clamp(min=torch.finfo(torch.float32).tiny)).float()

    @torch.no_grad()
    def eval_mode(self) -> None:
        """Put the averages into the model."""
        for group in self.param_groups:
            weight = 1 - 1 / group["betas"][0]
            for p in group["params"]:
                if "z" in self.state[p] and "train_weights" not in self.state[p]:
                    self.state[p]["train_weights"] = p.detach().clone()
                    local(p).lerp_(local(self.state[p]["z"]), weight)

    @torch.no_grad()
    def train_mode(self) -> None:
        """Put the weights that are trained back into the model."""
        for state, p in [(self.state[p], p) for group in self.param_groups for p in group["params"]]:
            if "train_weights" in state:
                p.copy_(state.pop("train_weights"))
