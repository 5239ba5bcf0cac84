"""Evaluation in the loop: bits per byte on a fixed set of held-out rows. Cheap, and comparable within a run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from slm.data.loader import Batch
from slm.model.decoder import Decoder
from slm.model.precision import autocast


def row_sums(model: Decoder, batches: Iterable[Batch], token_bytes_V: Tensor, precision: str) -> tuple[float, int]:
    """(nats, bytes) summed over all counted targets of the batches."""
    device = model.embedding.weight.device
    nats, size = 0.0, 0
    with torch.no_grad(), autocast(device, precision):
        for batch in batches:
            b = batch.to(device)
            hidden = model(b.tokens_BT, positions_BT=b.positions_BT, docs_BT=b.docs_BT)
            nats += float(model.loss(hidden, b.targets_BT).nll)
            size += int(token_bytes_V[batch.targets_BT.clamp(min=0)].where(batch.targets_BT >= 0, 0).sum())
    return nats, size


def bits_per_byte(nats: float, size: float) -> float:
    """Nats over bytes, in bits per byte."""
    return nats / math.log(2) / size
