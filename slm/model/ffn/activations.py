"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config.errors import ConfigError, suggest
from slm_kernels import activation, activation_linear, fused

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


KERNELS: dict[Activation, str] = {
    ACTIVATIONS[name]: name for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "identity")
}
"""What `slm_kernels.activation` calls them. The others, and activations that learn, have no kernel and run as they stand."""


def activate(act: Activation, x: Tensor, up: Tensor | None = None) -> Tensor:
    """act(x), or act(x) * up."""
    name = KERNELS.get(act)
    if name is not None and fused("activation", x, up, name, False):
        return activation(x, up, act=name)
    h = act(x)
    return h if up is None else h * up


def activate_into(down: nn.Linear, act: Activation, x: Tensor, up: Tensor | None = None) -> Tensor:
    """down(act(x)), or down(act(x) * up); by one op that doesn't keep what goes into ``down``, where there is a kernel.

    A linear layer that somebody watches (pruning reads what goes into it), or that computes otherwise, is called as a module.
    """
    name = KERNELS.get(act)
    watched = down._forward_hooks or down._forward_pre_hooks or type(down) is not nn.Linear
    if name is not None and not watched and fused("activation_linear", x, down.weight, up, down.bias, name, False):
        return activation_linear(x, down.weight, up, down.bias, act=name)
    return down(activate(act, x, up))  # type: ignore[no-any-return]


def known_activation(name: str) -> str:
    """The name, if there is such an activation. Raises `ConfigError` with the nearest otherwise."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"There is no activation {name!r}. {suggest(name, ACTIVATIONS)}")
    return name
