"""AdamW as a part; how it steps is in `steps.adamw`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pydantic

from slm.config.base import Config
from slm.train.optim.base import Chosen, NamedParameter, OptimPart, grouped, optim, without

if TYPE_CHECKING:
    import torch


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


def adamw(part: OptimPart, chosen: Sequence[Chosen], numbers: AdamNumbers) -> torch.optim.Optimizer:
    """AdamW for these parameters of a part: torch's fused one, or ours where it can't do what is asked for."""
    from slm.train.optim.steps.adamw import CautiousAdamW, FusedAdamW

    groups = grouped((c.parameter.tensor, part.numbers(c, eps=numbers.eps * c.parameter.factor("eps"))) for c in chosen)
    if numbers.cautious:
        return CautiousAdamW(groups, betas=numbers.betas)
    return FusedAdamW(groups, betas=numbers.betas, fused=not chosen[0].parameter.tensor.is_meta)
