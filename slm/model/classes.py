"""Tensor classes: what kind of parameter each one is, for initialisation, weight decay and learning rates.

A module that owns parameters says so itself: ``param_classes = {"weight": "norm"}``. `torch.nn.Linear` is
known. A parameter that nothing claims is an error, so that a new part can't be initialised or decayed by
accident.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

CLASSES = ("embedding", "head", "matrix", "norm", "bias")
_LINEAR = {"weight": "matrix", "bias": "bias"}


def classify(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(name, tensor class, parameter) of every parameter, once each, in the order of ``named_parameters``.

    Raises:
        ValueError: naming a parameter whose module doesn't say what class it has.
    """
    owners = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        owner = owners[path]
        known = getattr(owner, "param_classes", _LINEAR if isinstance(owner, nn.Linear) else {})
        if known.get(leaf) not in CLASSES:
            raise ValueError(
                f"parameter {name!r} of {type(owner).__name__} has no tensor class: give the module "
                f"param_classes = {{{leaf!r}: <one of {', '.join(CLASSES)}>}}"
            )
        yield name, known[leaf], parameter
