"""Arithmetic precision: fp32 weights, matrix products in fp32 or bf16 (and those of linear layers in fp8: `slm.train.float8`)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache

import torch


def product_dtype(precision: str) -> torch.dtype:
    """What matrix products come out in; those of fp8 in bf16."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which matrix products run in ``precision`` ("fp32", or "bf16", which is also what "fp8" leaves to itself);
    weights and sums stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=product_dtype(precision) == torch.bfloat16)


def working_dtype(like: torch.Tensor) -> torch.dtype:
    """What products with weights such as ``like`` come out in, here."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


@lru_cache
def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are at least as fast as fp32 ones here: on a CPU without instructions for them they are
    several times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
