"""Keys and values of past tokens, for decoding."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values: per layer (B, kv_heads, max_len, head_dim).

    Layers `append` at ``length``; the decoder moves ``length`` on once per forward pass (`advance`).
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values, self.length = keys, values, 0

    @classmethod
    def allocate(
        cls, shapes: list[tuple[int, int, int]], batch: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> "KVCache":
        """Room for ``max_len`` tokens; ``shapes`` gives (kv_heads, key width, value width) of each layer."""
        keys = [torch.empty(batch, heads, max_len, k, dtype=dtype, device=device) for heads, k, _ in shapes]
        values = [torch.empty(batch, heads, max_len, v, dtype=dtype, device=device) for heads, _, v in shapes]
        return cls(keys, values)

    @property
    def max_len(self) -> int:
        return self.keys[0].shape[2]

    def append(self, layer: int, k_BGTK: Tensor, v_BGTV: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values; returns all of them up to and including these."""
        end = self.length + k_BGTK.shape[2]
        if end > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens, {end} are needed")
        self.keys[layer][:, :, self.length : end] = k_BGTK
        self.values[layer][:, :, self.length : end] = v_BGTV
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens
