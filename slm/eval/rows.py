"""Evaluation in the loop: bits per byte on a fixed set of held-out rows. Cheap, and comparable within a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from slm.data.loader import Batch
from slm.model.precision import autocast

Losses = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""(tokens, targets, positions, docs), each (B, T), to (loss, cross entropy, ...), summed over targets."""


def row_sums(
    losses: Losses, batches: Iterable[Batch], token_bytes_V: Tensor, precision: str, device: torch.device
) -> tuple[float, int]:
    """(nats, bytes) summed over all counted targets of the batches."""
    nats, size = 0.0, 0
    with torch.no_grad(), autocast(device, precision):
        for batch in batches:
            b = batch.to(device)
            nats += float(losses(b.tokens_BT, b.targets_BT, b.positions_BT, b.docs_BT)[1])
            size += int(token_bytes_V[batch.targets_BT.clamp(min=0)].where(batch.targets_BT >= 0, 0).sum())
    return nats, size


def bits_per_byte(nats: float, size: float) -> float:
    """Nats over bytes, in bits per byte."""
    return nats / math.log(2) / size
