"""What every layer may know about the tokens at hand, computed once per forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slm.model.cache import KVCache
from slm.model.position import Position, Tables


@dataclass
class Mask:
    """Who may attend to whom: earlier tokens of the same document. ``past``: cached tokens before these."""

    length: int
    device: torch.device
    docs_BT: Tensor | None = None
    past: int = 0
    _bias: Tensor | None = None

    @property
    def plain_causal(self) -> bool:
        """Whether "causal" says it all."""
        return self.docs_BT is None and self.past == 0

    @cached_property
    def allowed(self) -> Tensor | None:
        """Boolean (B or 1, 1, T, S), True where attention is allowed; None when everything is."""
        if self.docs_BT is None and self.length == 1:
            return None  # one new token sees all that is cached
        keys = self.past + self.length
        causal_TS = torch.ones(self.length, keys, dtype=torch.bool, device=self.device).tril(self.past)
        if self.docs_BT is None:
            return causal_TS[None, None]
        same_BTT = self.docs_BT[:, :, None] == self.docs_BT[:, None, :]
        return (same_BTT & causal_TS)[:, None]

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """`allowed` as something to add to scores: 0 or -inf. Made once per forward pass; None when all is allowed."""
        if self._bias is None and self.allowed is not None:
            self._bias = torch.zeros(self.allowed.shape, dtype=dtype, device=self.device).masked_fill_(
                ~self.allowed, float("-inf")
            )
        return self._bias


@dataclass
class Sequence:
    """Positions, mask and cache of one forward pass."""

    mask: Mask
    position: Position
    tables: Tables | None
    backend: str = "auto"
    cache: KVCache | None = None

    def rotate(self, q_BHTK: Tensor, k_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the position encoding to queries and keys."""
        rotated: tuple[Tensor, Tensor] = self.position(q_BHTK, k_BGTK, self.tables)
        return rotated
