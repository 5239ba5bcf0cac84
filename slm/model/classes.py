"""Tensor classes: what kind of parameter each one is, for initialisation, weight decay and learning rates.

A module that owns parameters says so itself: ``param_classes = {"weight": "norm"}``. `torch.nn.Linear` is
known. A parameter that nothing claims is an error, so that a new part can't be initialised or decayed by
accident.

========== ======================================================= =========== =======
class      what                                                    starts at   decayed
========== ======================================================= =========== =======
embedding  rows looked up by token or position                     init part   no
head       the output embedding                                    init part   yes
matrix     a product on hidden states; also stacks of them (3-D)    init part   yes
conv       a short convolution's taps, (channels, kernel)          init part   no
norm       a gain                                                  1 or 0      no
bias       something added                                         0           no
scalar     anything else; its module says where it starts          `starts`    no
========== ======================================================= =========== =======
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = ("embedding", "head", "matrix", "conv", "norm", "bias", "scalar")
_LINEAR = {"weight": "matrix", "bias": "bias"}


@dataclass(frozen=True)
class Drawn:
    """A start that is drawn from a normal distribution, for what would stay symmetric otherwise."""

    std: float


def classify(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(name, tensor class, parameter) of every parameter, once each, in the order of ``named_parameters``.

    Raises:
        ValueError: naming a parameter whose module doesn't say what class it has.
    """
    for name, parameter in model.named_parameters():
        owner, leaf = owner_of(model, name)
        known = getattr(owner, "param_classes", _LINEAR if isinstance(owner, nn.Linear) else {})
        if known.get(leaf) not in CLASSES:
            raise ValueError(
                f"parameter {name!r} of {type(owner).__name__} has no tensor class: give the module "
                f"param_classes = {{{leaf!r}: <one of {', '.join(CLASSES)}>}}"
            )
        yield name, known[leaf], parameter


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and the parameter's name in it."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def start_of(model: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Where a ``norm``, ``bias`` or ``scalar`` starts: what its module says in ``starts``, else 1, 0 or an error."""
    owner, leaf = owner_of(model, name)
    own = getattr(owner, "starts", {})
    if isinstance(own.get(leaf), Drawn):
        return torch.empty(parameter.shape).normal_(0.0, own[leaf].std, generator=generator)
    if leaf in own:
        return torch.as_tensor(own[leaf], dtype=torch.float32).expand(parameter.shape)
    tensor_class = getattr(owner, "param_classes", _LINEAR)[leaf]
    if tensor_class == "scalar":
        raise ValueError(
            f"parameter {name!r} of {type(owner).__name__} is a scalar: give the module starts = {{{leaf!r}: value}}"
        )
    return torch.full(parameter.shape, 1.0 if tensor_class == "norm" else 0.0)
