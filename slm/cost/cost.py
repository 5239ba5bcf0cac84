"""`Cost`: what one part costs, as numbers that add up. No torch here.

Forward FLOPs count matrix multiplications only, 2 per multiply-accumulate. They come in two kinds:
``flops`` is paid per token whatever the context, ``flops_per_key`` per token *and* per key it attends to
(4 x heads x head_dim for softmax attention: scores and weighted values). A sum over layers therefore
gives the model's cost at any attended length: causal, windowed or cut at document ends.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Cost of a part. ``params``: stored values; ``kv_values``: numbers cached per token when decoding."""

    params: int = 0
    flops: float = 0
    flops_per_key: float = 0
    kv_values: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.params + other.params,
            self.flops + other.flops,
            self.flops_per_key + other.flops_per_key,
            self.kv_values + other.kv_values,
        )

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.params * times, self.flops * times, self.flops_per_key * times, self.kv_values * times)

    __rmul__ = __mul__
    __radd__ = lambda self, other: self if other == 0 else self + other  # noqa: E731  (lets sum() work)

    def forward_flops(self, keys: float) -> float:
        """Forward FLOPs per token when a token attends to ``keys`` positions on average."""
        return self.flops + self.flops_per_key * keys
