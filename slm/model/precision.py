"""Arithmetic precision: fp32 weights, matrix products in fp32 or bf16."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which matrix products run in ``precision`` ("fp32" or "bf16"); weights and sums stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
