"""Matrix products: the dtype that they run in, and sums in fp32 without a temporary."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """What torch would multiply ``x`` in: autocast's dtype where autocast is on (it leaves fp64 alone), else its own."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Products inside run in the dtype of what they are given."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def add_product_(total_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> None:
    """total += a b, in place. ``total`` is fp32 where ``a`` and ``b`` are bf16 or fp16 (or of their own dtype)."""
    if total_MN.dtype == a_MK.dtype:
        torch.addmm(total_MN, a_MK, b_KN, out=total_MN)  # addmm_ would do the same, but FLOP counters overlook it
    elif _adds_wide(total_MN.device, a_MK.dtype):
        torch.addmm(total_MN, a_MK, b_KN, out_dtype=total_MN.dtype, out=total_MN)
    elif a_MK.device.type == "cpu":
        # Products of bf16 numbers are exact in fp32: rounding the result to bf16, as bf16 products do, is what would hurt.
        torch.addmm(total_MN, a_MK.to(total_MN.dtype), b_KN.to(total_MN.dtype), out=total_MN)
    else:
        total_MN.add_(a_MK @ b_KN)


@lru_cache
def _adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this device's products of ``dtype`` can be added to an fp32 matrix. Tried once, on a small one."""
    if device.type != "cuda":
        return False
    a = torch.ones(16, 16, device=device, dtype=dtype)
    total = torch.full((16, 16), 0.001, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return bool((total == torch.full_like(total, 0.001) + 16).all())
