"""Muon: momentum whose update is replaced by the nearest (semi-)orthogonal matrix.

For a matrix with momentum M = U S V^T the update is about U V^T: every direction moves by the same amount,
instead of a few dominating. U V^T is approached by five steps of the quintic Newton-Schulz iteration

    X <- a X + b (X X^T) X + c (X X^T)^2 X,   (a, b, c) = (3.4445, -4.7750, 2.0315)

from X = M / |M|_F, which pushes all singular values towards 1 (to within about 0.7..1.2, which is enough).
Matrices of one shape are stacked, so a model of 30 equal layers costs a handful of batched products.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
scalable for LLM training", arXiv 2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from slm.model.precision import fast_bf16

_A, _B, _C = 3.4445, -4.7750, 2.0315
UPDATE_RMS = 0.2
"""Root mean square of an update at rate 1: about what AdamW's updates have (Liu et al. 2025, arXiv 2502.16982)."""


def orthogonalise(update_NRC: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz on a stack of matrices. Shape (N, rows, columns) in and out; inside bf16 where it is fast, else fp32."""
    x = update_NRC.to(torch.bfloat16 if fast_bf16(update_NRC.device) else torch.float32)
    tall = x.size(-2) > x.size(-1)
    if tall:  # the Gram matrix of the short side is the small one
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.mT if tall else x).to(update_NRC.dtype)


class MuonOptimizer(torch.optim.Optimizer):
    """Muon for matrices and stacks of them (3-D), with Nesterov momentum and decoupled weight decay."""

    found_inf: Tensor | None = None
    """Set by the trainer: 1.0 makes `step` a no-op, decided on the device."""

    def __init__(self, params: Any, *, lr: float = 4e-3, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim not in (2, 3):
                    raise ValueError(f"Muon takes matrices only, got a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                self._step_stack(group, shape, params)

    def _step_stack(self, group: dict[str, Any], shape: torch.Size, params: list[Tensor]) -> None:
        """Update all matrices of one shape."""
        keep = 1.0 if self.found_inf is None else 1.0 - self.found_inf  # 0 when the gradient is not finite
        grads = [p.grad for p in params if p.grad is not None]
        if self.found_inf is not None:
            grads = [torch.nan_to_num(grad, 0.0, 0.0, 0.0) for grad in grads]
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
        for moment, grad in zip(momenta, grads, strict=True):
            moment.add_((grad - moment) * ((1 - group["momentum"]) * keep))
        nesterov = torch.stack([g.lerp(m, group["momentum"]) for g, m in zip(grads, momenta, strict=True)])
        rate = (
            group["lr"] * UPDATE_RMS * max(shape[-2:]) ** 0.5
        )  # an orthogonal R x C matrix has RMS 1 / sqrt(max(R, C))
        for p, update in zip(params, orthogonalise(nesterov.flatten(0, -3)).view_as(nesterov), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"] * keep).sub_(update * (rate * keep))
