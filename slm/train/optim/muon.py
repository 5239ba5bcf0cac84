"""Muon as a part, and what it shares with other optimisers of matrices; how it steps is in `steps.muon`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pydantic

from slm.config.errors import ConfigError
from slm.train.optim.adamw import AdamNumbers, adamw
from slm.train.optim.base import Chosen, NamedParameter, OptimPart, grouped, optim

if TYPE_CHECKING:
    import torch


Polynomial = Literal["jordan", "polar_express", "classic"]


class MatrixPart(AdamNumbers, OptimPart):
    """An optimiser that has a way of its own with matrices, and AdamW for the rest."""

    rest_lr: float | None = pydantic.Field(None, gt=0)
    """Peak rate of what is AdamW's: embeddings, head, norms, biases. None: ``lr``."""

    def base_lr(self, p: NamedParameter, elementwise: bool) -> float:
        return self.lr if p.tensor_class == "matrix" and not elementwise else self.rest_lr or self.lr

    def matrix_optimizer(self, chosen: list[Chosen]) -> torch.optim.Optimizer:
        """The optimiser of the matrices."""
        raise NotImplementedError

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        chosen = self.choose(parameters)
        matrices = [c for c in chosen if c.parameter.tensor_class == "matrix" and not c.elementwise]
        taken = {id(c) for c in matrices}
        rest = [c for c in chosen if id(c) not in taken]
        built = [self.matrix_optimizer(matrices)] if matrices else []
        return [*built, adamw(self, rest, self)] if rest else built


@optim.register(
    "muon", paper="Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982"
)
class Muon(MatrixPart):
    """Orthogonalised momentum for matrices; AdamW, at the same rate, for embeddings, head, norms and biases.

    An update is scaled to the root mean square that AdamW's has (0.2, Liu et al. 2025), so that one learning
    rate and one weight decay serve all tensors, and both carry over from AdamW.
    """

    lr: float = pydantic.Field(4e-3, gt=0)
    """Peak learning rate; the schedule scales it."""
    momentum: float = pydantic.Field(0.95, ge=0, lt=1)
    """Of the matrices; ``betas`` and ``eps`` are for the rest."""
    nesterov: bool = True
    """Orthogonalise the gradient mixed with the momentum, instead of the momentum."""
    scale: Literal["adamw", "aspect"] = "adamw"
    """Size of an update at rate 1: a root mean square of 0.2 (adamw), or sqrt(max(1, rows / columns)) times the orthogonal matrix
    (aspect; Jordan et al.), whose rates are about 0.02 and need a ``rest_lr``."""
    polynomial: Polynomial = "jordan"
    """How the orthogonal matrix is approached: jordan, polar_express or classic (see `newton_schulz`)."""
    ns_steps: int = pydantic.Field(5, gt=0)
    """Steps of that iteration."""

    def matrix_optimizer(self, chosen: list[Chosen]) -> torch.optim.Optimizer:
        from slm.train.optim.steps.muon import MuonOptimizer

        rate: Literal["orthogonal_lr", "none"] = "orthogonal_lr" if self.scale == "adamw" else "none"
        for c in chosen:
            rows = c.parameter.tensor.shape[-2] if c.parameter.tensor.ndim > 1 else 1
            if rows % c.blocks:
                raise ConfigError(
                    f"train.optim.rules: blocks={c.blocks} doesn't divide the {rows} rows of {c.parameter.name!r}."
                )
        groups = grouped((c.parameter.tensor, self.numbers(c, rate, blocks=c.blocks)) for c in chosen)
        return MuonOptimizer(
            groups, momentum=self.momentum, nesterov=self.nesterov, scale=self.scale, polynomial=self.polynomial,
            ns_steps=self.ns_steps, cautious=self.cautious,
        )  # fmt: skip
