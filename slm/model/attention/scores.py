"""What is asked of softmax attention: how a score comes about (`Scores`), and all that decides who can compute it (`Request`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slm.model.sequence import Mask


@dataclass(frozen=True)
class Scores:
    """How a score comes about: softmax over cap tanh(q k scale / cap) - slope distance, within a window."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes_H: Tensor | None = None
    sinks_H: Tensor | None = None
    """Logits of a key that carries no value, one per head."""


class Wishes(NamedTuple):
    """What a part asks of softmax attention, before there is a row."""

    width: int
    value_width: int
    grouped: bool = False
    window: int | None = None
    softcap: bool = False
    sinks: bool = False


class Request(NamedTuple):
    """One call of attention, as far as a backend's abilities depend on it."""

    device: torch.device
    dtype: torch.dtype
    queries: int
    keys: int
    width: int
    value_width: int
    grouped: bool = False
    """Fewer key/value heads than query heads."""
    documents: bool = False
    window: bool = False
    """One that some key lies outside of."""
    softcap: bool = False
    slopes: bool = False
    sinks: bool = False
    gradient: bool = True
    graph: bool = False
    """Traced by torch.compile or recorded as a CUDA graph: the host can't look at values."""

    @property
    def dense(self) -> bool:
        """Whether "causal" says it all."""
        extra = self.documents or self.window or self.softcap or self.slopes or self.sinks
        return self.queries == self.keys and not extra

    @staticmethod
    def of(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores) -> "Request":
        """What these arguments ask for."""
        keys = k_BGSK.shape[2]
        tensors = (q_BHTK, k_BGSK, v_BGSV)
        return Request(
            q_BHTK.device,
            q_BHTK.dtype,
            q_BHTK.shape[2],
            keys,
            q_BHTK.shape[3],
            v_BGSV.shape[3],
            q_BHTK.shape[1] != k_BGSK.shape[1],
            mask.docs_BT is not None,
            scores.window is not None and scores.window < keys,
            scores.softcap is not None,
            scores.slopes_H is not None,
            scores.sinks_H is not None,
            torch.is_grad_enabled() and any(t.requires_grad for t in tensors),
            torch.compiler.is_compiling() or mask.graph,
        )
