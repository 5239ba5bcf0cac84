"""SOAP as a part; how it steps is in `steps.soap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from slm.train.optim.base import Chosen, grouped, optim, without
from slm.train.optim.muon import MatrixPart

if TYPE_CHECKING:
    import torch


@optim.register("soap", paper="Vyas et al. 2024, arXiv 2409.11321")
class SOAP(MatrixPart):
    """Adam in Shampoo's eigenbasis for matrices; AdamW, at the same rate, for the rest."""

    lr: float = pydantic.Field(3e-3, gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Decay per step of the running means of the gradient and of its square."""
    shampoo_beta: float = pydantic.Field(0.95, ge=0, lt=1)
    """Decay per step of the running means of G G^T and G^T G."""
    frequency: int = pydantic.Field(10, gt=0)
    """Steps from one basis to the next."""
    max_dim: int = pydantic.Field(10_000, gt=0)
    """Longest side that is rotated."""

    def matrix_optimizer(self, chosen: list[Chosen]) -> torch.optim.Optimizer:
        from slm.train.optim.steps.soap import SOAPOptimizer

        chosen = without(self, chosen, "blocks")
        groups = grouped(
            (c.parameter.tensor, self.numbers(c, "orthogonal_lr", eps=self.eps * c.parameter.factor("eps")))
            for c in chosen
        )
        return SOAPOptimizer(
            groups, betas=self.betas, shampoo_beta=self.shampoo_beta, frequency=self.frequency, max_dim=self.max_dim,
            cautious=self.cautious,
        )  # fmt: skip
