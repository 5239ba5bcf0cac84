"""How launchers see tensors, and how many programs they start."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """(N, H) with contiguous rows at any distance; a view where strides allow one."""
    H = x.shape[-1]
    rows = x.reshape(x.numel() // H if H else 0, H)
    return rows if rows.stride(-1) == 1 or H == 1 else rows.contiguous()


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; one where there is none and kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def programs(N: int, rows: int, device: torch.device, per_processor: int = 2) -> tuple[int, int]:
    """Programs that walk over N rows, and how many tiles of ``rows`` rows each treats: enough to fill the GPU, no more, for
    each leaves a partial sum behind."""
    tiles = -(-N // rows)
    each = -(-tiles // (per_processor * processors(device)))
    return -(-tiles // each), each
