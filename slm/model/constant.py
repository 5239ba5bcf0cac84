"""Numbers of a formula as tensors, where they can't be computed on the device."""

from __future__ import annotations

import torch
from torch import Tensor

_made: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The numbers, of shape (len(values),); not to be written into.

    On a GPU they are made once and kept: making them waits for the device, which costs time in every pass and which a CUDA graph can't
    record. No buffers of modules, since a model that is built without memory and moved has garbage in those.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return torch.tensor(values, device=device, dtype=dtype)
    key = (values, device, dtype)
    if key not in _made:
        with torch.inference_mode(False):
            _made[key] = torch.tensor(values, device=device, dtype=dtype)
    return _made[key]
