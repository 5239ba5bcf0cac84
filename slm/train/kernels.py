"""``impl.kernels``: which implementation of the ops of slm_kernels a run takes, and what it took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import slm_kernels
from slm.config.errors import ConfigError, RunError


@contextmanager
def kernels(impl: str, device: torch.device) -> Iterator[None]:
    """Within it, ops run as ``impl`` says; afterwards as before.

    Raises:
        ConfigError: ``impl`` is triton, and none of its kernels can run on ``device``.
        RunError: a call came that the implementation can't do.
    """
    if impl == "triton" and (why := slm_kernels.unavailable(device)):
        raise ConfigError(
            f"impl.kernels=triton can't run here: {why}. Set impl.kernels=auto, which takes Triton where it can, or torch."
        )
    slm_kernels.forget()
    with slm_kernels.use(impl):
        try:
            yield
        except slm_kernels.Unsupported as error:
            raise RunError(f"impl.kernels={impl}: {error} impl.kernels=auto chooses for each call.") from error


def note() -> str:
    """What the ops have run as so far, for the log: one line, with the reasons. What torch.compile has traced isn't told."""
    found: dict[str, list[str]] = {}
    for name, choices in slm_kernels.chosen().items():
        for impl, reason in choices:
            found.setdefault(f"{impl} ({reason})", []).append(name)
    return "Kernels: " + "; ".join(f"{how}: {', '.join(names)}" for how, names in found.items()) if found else ""
