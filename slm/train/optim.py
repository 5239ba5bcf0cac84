"""Optimisers, and which parameter gets what.

An optimiser part receives every parameter with its *tensor class* (see `slm.model.classes`) and builds one
or more torch optimisers. Each parameter group keeps its peak rate under ``peak_lr``; the schedule scales
it. Weight decay applies to matrices and the head only: decaying norms, biases or embeddings costs quality or stability
and is what several peers do by accident.

A step whose gradient is not finite must change nothing. Optimisers therefore read ``found_inf``, a
one-element device tensor that the trainer sets before `step` (torch's own convention for gradient
scaling); the check happens on the device and the host never waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import pydantic

from slm.config.base import Config
from slm.config.registry import Part, Registry

if TYPE_CHECKING:
    import torch

    from slm.model.parametrization import Rates


@dataclass(frozen=True)
class NamedParameter:
    """A parameter, its dotted name, and its tensor class."""

    name: str
    tensor_class: str
    tensor: "torch.nn.Parameter"
    rates: "Rates | None" = None
    """Factors of the model's parametrisation; None: none."""

    def factor(self, name: str) -> float:
        """A factor by its name in `slm.model.parametrization.Rates`."""
        return 1.0 if self.rates is None else getattr(self.rates, name)  # type: ignore[no-any-return]


class OptimPart(Part):
    """An optimiser."""

    def build(self, parameters: list[NamedParameter]) -> list["torch.optim.Optimizer"]:
        """One optimiser or more that together hold every parameter exactly once."""
        raise NotImplementedError

    @property
    def state_per_param(self) -> int:
        """fp32 numbers of optimiser state per weight, for memory plans."""
        raise NotImplementedError


optim = Registry("optim", OptimPart)
OptimSlot = Annotated[OptimPart, optim.field()]


class AdamWSettings(Config):
    """The numbers of AdamW."""

    lr: float = pydantic.Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1


@optim.register("adamw", paper="Loshchilov & Hutter 2019, arXiv 1711.05101")
class AdamW(AdamWSettings, OptimPart):
    """AdamW; weight decay on matrices and the head only."""

    def build(self, parameters: list[NamedParameter]) -> list["torch.optim.Optimizer"]:
        return [_adamw(self, parameters)]

    @property
    def state_per_param(self) -> int:
        return 2


@optim.register(
    "muon", paper="Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982"
)
class Muon(AdamWSettings, OptimPart):
    """Orthogonalised momentum for matrices; AdamW, at the same rate, for embeddings, head, norms and biases.

    An update is scaled to the root mean square that AdamW's has (0.2, Liu et al. 2025), so that one learning
    rate and one weight decay serve all tensors, and both carry over from AdamW.
    """

    lr: float = pydantic.Field(4e-3, gt=0)
    momentum: float = pydantic.Field(0.95, ge=0, lt=1)
    """Of the matrices; ``betas`` and ``eps`` are for the rest."""

    def build(self, parameters: list[NamedParameter]) -> list["torch.optim.Optimizer"]:
        from slm.train.muon import MuonOptimizer

        matrices = [p for p in parameters if p.tensor_class == "matrix"]
        rest = [p for p in parameters if p.tensor_class != "matrix"]
        groups = [
            {"params": members, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for (lr, decay), members in _grouped(
                matrices, lambda p: (self.lr * p.factor("orthogonal_lr"), self.weight_decay / p.factor("orthogonal_lr"))
            ).items()
        ]
        muon = MuonOptimizer(groups, momentum=self.momentum)
        return [muon, _adamw(self, rest)]

    @property
    def state_per_param(self) -> int:
        return 1


DECAYED = {
    "matrix": True, "head": True, "embedding": False, "norm": False, "bias": False, "conv": False, "scalar": False,
}  # fmt: skip
"""Tensor class -> does weight decay apply. A class that is not listed is an error, never a default."""


def _adamw(config: AdamWSettings, parameters: list[NamedParameter]) -> "torch.optim.Optimizer":
    import torch

    def numbers(p: NamedParameter) -> tuple[float, float, float]:
        decay = config.weight_decay * p.factor("weight_decay") if DECAYED[p.tensor_class] else 0.0
        return decay, config.lr * p.factor("lr"), config.eps * p.factor("eps")

    groups = [
        {"params": members, "weight_decay": decay, "lr": lr, "peak_lr": lr, "eps": eps}
        for (decay, lr, eps), members in _grouped(parameters, numbers).items()
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _grouped(
    parameters: list[NamedParameter], numbers: Callable[[NamedParameter], tuple[float, ...]]
) -> dict[tuple[float, ...], list["torch.nn.Parameter"]]:
    """Parameters by their numbers, those with the largest (decayed before others) first."""
    groups: dict[tuple[float, ...], list["torch.nn.Parameter"]] = {}
    for p in parameters:
        groups.setdefault(numbers(p), []).append(p.tensor)
    return dict(sorted(groups.items(), reverse=True))


def set_rate(optimizers: Iterable["torch.optim.Optimizer"], factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
