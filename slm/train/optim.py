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

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from slm.config.base import Config
from slm.config.registry import Part, Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NamedParameter:
    """A parameter, its dotted name, and its tensor class."""

    name: str
    tensor_class: str
    tensor: "torch.nn.Parameter"


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
        group = {"params": [p.tensor for p in matrices], "lr": self.lr, "peak_lr": self.lr}
        muon = MuonOptimizer([group], momentum=self.momentum, weight_decay=self.weight_decay)
        return [muon, _adamw(self, rest)]

    @property
    def state_per_param(self) -> int:
        return 1


DECAYED = {"matrix": True, "head": True, "embedding": False, "norm": False, "bias": False}
"""Tensor class -> does weight decay apply. A class that is not listed is an error, never a default."""


def _adamw(config: AdamWSettings, parameters: list[NamedParameter]) -> "torch.optim.Optimizer":
    import torch

    groups: list[dict[str, Any]] = []
    for decayed in (True, False):
        members = [p.tensor for p in parameters if DECAYED[p.tensor_class] is decayed]
        if members:
            decay = config.weight_decay if decayed else 0.0
            groups.append({"params": members, "weight_decay": decay, "lr": config.lr, "peak_lr": config.lr})
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_rate(optimizers: Iterable["torch.optim.Optimizer"], factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
