"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.config.errors import ConfigError, suggest

Activation = Callable[[Tensor], Tensor]


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


def identity(x: Tensor) -> Tensor:
    """x: a gated feed-forward with it is bilinear (Shazeer 2020, arXiv 2002.05202)."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": F.mish,
    "elu": F.elu,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "identity": identity,
}
"""gelu_tanh is x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which checkpoints call gelu_new or gelu_pytorch_tanh."""


def known_activation(name: str) -> str:
    """The name, if there is such an activation. Raises `ConfigError` with the nearest otherwise."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"There is no activation {name!r}. {suggest(name, ACTIVATIONS)}")
    return name
