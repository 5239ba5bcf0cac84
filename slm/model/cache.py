"""What a model remembers of past tokens, for decoding.

Each layer asks for the `Room` it needs: per token, for all tokens or the last ones, and states of fixed size. The decoder moves ``length`` on once per forward pass (`Cache.advance`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """A named tensor of fixed shape (without the batch) per layer. ``fp32``: whatever the model's dtype."""

    name: str
    shape: tuple[int, ...]
    fp32: bool = False


@dataclass(frozen=True)
class Room:
    """How much a layer wants to keep: tensors of ``shapes`` per token, the last ``window`` tokens (None: all), and
    ``states`` that don't grow. Shapes are without the batch; a shape per token is (heads, width)."""

    shapes: tuple[tuple[int, int], ...] = ()
    window: int | None = None
    states: tuple[State, ...] = ()

    def values(self) -> int:
        """Numbers per cached token."""
        return sum(heads * width for heads, width in self.shapes)

    def state_values(self) -> int:
        """Numbers that don't depend on the length, in units of two bytes."""
        return sum(math.prod(s.shape) * (2 if s.fp32 else 1) for s in self.states)

    def with_states(self, states: tuple[State, ...]) -> "Room":
        """The same with more states."""
        return replace(self, states=self.states + states)


class LayerCache:
    """One layer's memory. A window keeps its tokens in order, the newest last."""

    def __init__(self, room: Room, batch: int, max_len: int, dtype: torch.dtype, device: torch.device) -> None:
        self.max_len, self.size = max_len, min(max_len, room.window or max_len)
        self.windowed = self.size < max_len
        self.tokens = [torch.empty(batch, h, self.size, w, dtype=dtype, device=device) for h, w in room.shapes]
        wide = torch.promote_types(dtype, torch.float32)
        self.states = {
            s.name: torch.zeros(batch, *s.shape, dtype=wide if s.fp32 else dtype, device=device) for s in room.states
        }
        self.kept = 0

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.tokens, *self.states.values()]

    def append(self, *new: Tensor) -> list[Tensor]:
        """Store new tokens, each tensor (B, heads, T, width); returns the kept ones before them and these."""
        length = new[0].shape[2]
        if not self.windowed:
            end = self.kept + length
            if end > self.max_len:
                raise ValueError(f"the cache holds {self.max_len} tokens, {end} are needed")
            for held, fresh in zip(self.tokens, new, strict=True):
                held[:, :, self.kept : end] = fresh
            self.kept = end
            return [held[:, :, :end] for held in self.tokens]
        joined = [
            torch.cat((held[:, :, : self.kept], fresh.to(held.dtype)), 2)
            for held, fresh in zip(self.tokens, new, strict=True)
        ]
        self.kept = min(self.size, self.kept + length)
        for held, both in zip(self.tokens, joined, strict=True):
            held[:, :, : self.kept] = both[:, :, both.shape[2] - self.kept :]
        return joined


class Cache:
    """The layers' memories, and how many tokens they have seen."""

    def __init__(self, layers: list[LayerCache], max_len: int) -> None:
        self.layers, self.max_len, self.length = layers, max_len, 0

    @classmethod
    def allocate(cls, rooms: list[Room], batch: int, max_len: int, dtype: torch.dtype, device: torch.device) -> "Cache":
        """Room for ``max_len`` tokens of ``batch`` sequences."""
        return cls([LayerCache(room, batch, max_len, dtype, device) for room in rooms], max_len)

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that is held."""
        return [t for layer in self.layers for t in layer.tensors]

    def advance(self, tokens: int) -> None:
        if self.length + tokens > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens, {self.length + tokens} are needed")
        self.length += tokens
