"""The ``data`` section: which text, cut into rows of which length, in which order."""

from __future__ import annotations

from typing import Literal

import pydantic

from slm.config.base import Config
from slm.data.sources import SourceSlot, Stdlib


class Data(Config):
    """What the model reads. Part of the identity."""

    source: SourceSlot = Stdlib()
    seq_len: int = pydantic.Field(512, ge=8)
    """Tokens per row."""
    packing: Literal["best_fit", "concat"] = "best_fit"
    """``best_fit`` keeps documents whole where they fit into a row; ``concat`` cuts the stream every ``seq_len``."""
    window: int = pydantic.Field(4096, gt=0)
    """Documents packed together by ``best_fit``."""
    heldout: float = pydantic.Field(0.01, ge=0, lt=1)
    """Share of documents kept for evaluation, chosen by a hash of their id."""
    dedup: bool = True
    """Drop exact duplicates."""
    seed: int = 0
    """Seed of the row order: a new permutation every epoch."""
