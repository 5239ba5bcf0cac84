"""What every layer may know about the tokens at hand, computed once per forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from slm.model.cache import Cache
from slm.model.position.base import Position, Tables


@dataclass
class Mask:
    """Who may attend to whom: earlier tokens of the same document, within a window. ``past``: tokens before these."""

    length: int
    device: torch.device
    docs_BT: Tensor | None = None
    past: int = 0
    _made: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.docs_BT is not None and self.past:
            raise ValueError("documents and a cache can't be combined: a cache continues one document per row")

    def plain_causal(self, window: int | None) -> bool:
        """Whether "causal" says it all."""
        return self.docs_BT is None and self.past == 0 and (window is None or window >= self.length)

    def distance(self, keys: int) -> Tensor:
        """(T, S): how many tokens key s stands before query t; the last key is the last query. Negative: after it."""
        last = torch.arange(keys - self.length, keys, device=self.device)
        return last[:, None] - torch.arange(keys, device=self.device)[None, :]

    def allowed(self, keys: int, window: int | None = None) -> Tensor | None:
        """Boolean (B or 1, 1, T, S), True where attention is allowed; None when everything is."""
        key = ("allowed", keys, window)
        if key not in self._made:
            self._made[key] = self._allowed(keys, window)
        return self._made[key]

    def _allowed(self, keys: int, window: int | None) -> Tensor | None:
        if self.docs_BT is None and self.length == 1 and (window is None or window >= keys):
            return None  # one new token sees all that is cached
        distance_TS = self.distance(keys)
        allowed_TS = distance_TS >= 0
        if window is not None:
            allowed_TS = allowed_TS & (distance_TS < window)
        if self.docs_BT is None:
            return allowed_TS[None, None]
        same_BTS = self.docs_BT[:, :, None] == self.docs_BT[:, None, :]
        return (same_BTS & allowed_TS)[:, None]

    def bias(self, keys: int, window: int | None, slopes_H: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to scores: 0 or -inf, less slope x distance. (B or 1, H or 1, T, S); None when nothing is.

        Made once per forward pass for layers that ask alike.
        """
        key = ("bias", keys, window, like.dtype, None if slopes_H is None else id(slopes_H))
        if key not in self._made:
            allowed = self.allowed(keys, window)
            bias = None if allowed is None else torch.zeros(allowed.shape, dtype=like.dtype, device=self.device)
            if bias is not None and allowed is not None:
                bias = bias.masked_fill_(~allowed, float("-inf"))
            if slopes_H is not None:
                fall_HTS = -slopes_H[:, None, None] * self.distance(keys).clamp(min=0).to(like.dtype)
                bias = fall_HTS[None] if bias is None else bias + fall_HTS
            self._made[key] = bias
        return self._made[key]


@dataclass
class Encoding:
    """A position encoding with its tables for the positions at hand."""

    position: Position
    tables: Tables | None
    _slopes: dict[int, Tensor | None] = field(default_factory=dict)

    def rotate(self, x_BHTK: Tensor) -> Tensor:
        """Queries or keys, turned by their positions."""
        return self.position.rotate(x_BHTK, self.tables)

    def slopes(self, heads: int, x: Tensor) -> Tensor | None:
        """See `Position.slopes`; one tensor for all layers that share the encoding."""
        if heads not in self._slopes:
            self._slopes[heads] = self.position.slopes(heads, x)
        return self._slopes[heads]


@dataclass
class Sequence:
    """Tokens, positions, mask and cache of one forward pass; what layers hand on to later ones."""

    tokens_BT: Tensor
    positions_BT: Tensor
    mask: Mask
    encodings: list[Encoding]
    """By place in the order of execution."""
    backend: str = "auto"
    cache: Cache | None = None
    x0_BTD: Tensor | None = None
    """The embeddings, for layers that mix them in again."""
    first_values: Tensor | None = None
    """The first attention's values, for value residuals."""
    penalties: list[Tensor] = field(default_factory=list)
    """Auxiliary losses per token that layers want added, each a scalar."""
