"""What every layer may know about the tokens at hand, computed once per forward pass.

The decoder makes one `Sequence` per forward pass and shows each block its own view of it, `Here`. A block leaves what later layers
or the loss need in its view, and the decoder takes it from there (`Handed`). So a block is a function of what it is given: it
can be run again for its gradients, and one compiled graph serves all blocks that are built alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.cache import Cache, LayerCache
from slm.model.position.base import Position, Tables


@dataclass
class Mask:
    """Who may attend to whom: earlier tokens of the same document, within a window. ``past``: tokens before these. The tokens of a
    document stand together in ``docs_BT``. ``graph``: the host can't look at values, since what is done is recorded."""

    length: int
    device: torch.device
    docs_BT: Tensor | None = None
    past: int = 0
    graph: bool = False
    _made: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.docs_BT is not None and self.past:
            raise ValueError("documents and a cache can't be combined: a cache continues one document per row")

    def plain_causal(self, window: int | None) -> bool:
        """Whether "causal" says it all."""
        return self.docs_BT is None and self.past == 0 and (window is None or window >= self.length)

    def document_begins(self) -> Tensor:
        """(B, T), whether a document begins at a token. For a mask with documents."""
        assert self.docs_BT is not None
        return F.pad(self.docs_BT[:, 1:] != self.docs_BT[:, :-1], (1, 0), value=True)

    def document_starts(self) -> Tensor:
        """(B, T), int64: where the document of each token begins."""
        return torch.where(self.document_begins(), torch.arange(self.length, device=self.device), 0).cummax(1).values

    def distance(self, keys: int) -> Tensor:
        """(T, S): how many tokens key s stands before query t; the last key is the last query. Negative: after it."""
        last = torch.arange(keys - self.length, keys, device=self.device)
        return last[:, None] - torch.arange(keys, device=self.device)[None, :]

    def allowed(self, keys: int, window: int | None = None) -> Tensor | None:
        """Boolean (B or 1, 1, T, S), True where attention is allowed; None when everything is."""
        if (
            torch.compiler.is_compiling()
        ):  # traced, it costs little, and a graph doesn't depend on what others have made
            return self._allowed(keys, window)
        key = ("allowed", keys, window)
        if key not in self._made:
            self._made[key] = self._allowed(keys, window)
        return self._made[key]

    def remembered(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        """What a backend makes of this mask, such as the borders of documents: once per forward pass. While a graph is traced it finds
        what was made before (`slm.model.attention.routing.prepare`), and makes the rest in it."""
        if key in self._made:
            return self._made[key]
        made = make()
        if not torch.compiler.is_compiling():
            self._made[key] = made
        return made

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
        if torch.compiler.is_compiling():
            return self._bias(keys, window, slopes_H, like)
        key = ("bias", keys, window, like.dtype, None if slopes_H is None else id(slopes_H))
        if key not in self._made:
            self._made[key] = self._bias(keys, window, slopes_H, like)
        return self._made[key]

    def _bias(self, keys: int, window: int | None, slopes_H: Tensor | None, like: Tensor) -> Tensor | None:
        allowed = self.allowed(keys, window)
        bias = None if allowed is None else torch.zeros(allowed.shape, dtype=like.dtype, device=self.device)
        if bias is not None and allowed is not None:
            bias = bias.masked_fill(~allowed, float("-inf"))
        if slopes_H is not None:
            fall_HTS = -slopes_H[:, None, None] * self.distance(keys).clamp(min=0).to(like.dtype)
            bias = fall_HTS[None] if bias is None else bias + fall_HTS
        return bias


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
        if torch.compiler.is_compiling():
            return self.position.slopes(heads, x)
        if heads not in self._slopes:
            self._slopes[heads] = self.position.slopes(heads, x)
        return self._slopes[heads]


class Handed(NamedTuple):
    """What a block hands on."""

    first_values: Tensor | None = None
    """See `Here.first_values`; of the first block that has some."""
    penalties: tuple[Tensor, ...] = ()
    """See `Here.penalties`; this block's."""


@dataclass
class Here:
    """What a layer sees of the forward pass, and where it leaves what others need."""

    tokens_BT: Tensor
    positions_BT: Tensor
    mask: Mask
    encoding: Encoding
    """The position encoding at this layer."""
    backend: str = "auto"
    """Which implementation `slm.model.attention.backends.attend` takes."""
    memory: LayerCache | None = None
    """What this layer remembers of past tokens; None where nothing is (in training)."""
    x0_BTD: Tensor | None = None
    """The embeddings, for layers that mix them in again."""
    first_values: Tensor | None = None
    """The first attention's values, for value residuals: whoever finds None leaves its own."""
    penalties: list[Tensor] = field(default_factory=list)
    """Auxiliary losses per token that this layer wants added, each a scalar."""

    def fresh(self) -> "Here":
        """A copy to write into, so that a block that is run again finds what it found the first time."""
        return replace(self, penalties=[])

    def handed_on(self, given: "Here") -> Handed:
        """What was left here and isn't in ``given``."""
        return Handed(self.first_values if given.first_values is None else None, tuple(self.penalties))


@dataclass
class Sequence:
    """Tokens, positions, mask and cache of one forward pass, and what blocks have handed on so far."""

    tokens_BT: Tensor
    positions_BT: Tensor
    mask: Mask
    encodings: list[Encoding]
    """By place in the order of execution."""
    backend: str = "auto"
    cache: Cache | None = None
    x0_BTD: Tensor | None = None
    first_values: Tensor | None = None
    penalties: list[Tensor] = field(default_factory=list)

    def at(self, layer: int) -> Here:
        """What the layer at this place in the order of execution is shown."""
        memory = None if self.cache is None else self.cache.layers[layer]
        return Here(
            self.tokens_BT,
            self.positions_BT,
            self.mask,
            self.encodings[layer],
            self.backend,
            memory,
            self.x0_BTD,
            self.first_values,
        )

    def take(self, handed: Handed) -> None:
        """Keep what a block has handed on."""
        if handed.first_values is not None:
            self.first_values = handed.first_values
        self.penalties.extend(handed.penalties)
