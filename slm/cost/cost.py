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

    def forward_flops(self, keys: float) -> float:
        """Forward FLOPs per token when a token attends to ``keys`` positions on average."""
        return self.flops + self.flops_per_key * keys


@dataclass(frozen=True)
class ModelCost:
    """Costs of a whole model, by kind of part, at a context of ``context`` tokens."""

    parts: dict[str, Cost]
    context: int

    @property
    def total(self) -> Cost:
        """All parts together."""
        return sum(self.parts.values(), Cost())

    @property
    def params(self) -> dict[str, int]:
        """``unique`` are stored; ``total`` counts a shared block at each use and a tied embedding once."""
        unique, embedding, head = self.total.params, self.parts["embedding"].params, self.parts["head"].params
        return {
            "total": unique,
            "unique": unique,
            "embedding": embedding,
            "head": head,
            "non_embedding": unique - embedding - head,
        }

    @property
    def flops_per_token(self) -> dict[str, float]:
        """FLOPs per training token: ``forward`` and ``train`` (3 x) attend causally, on average to half of the context;
        ``train_palm`` counts the full square, as PaLM (arXiv 2204.02311, appendix B) and most trainers do."""
        forward = self.total.forward_flops((self.context + 1) / 2)
        return {"forward": forward, "train": 3 * forward, "train_palm": 3 * self.total.forward_flops(self.context)}

    def kv_cache_bytes(self, context: int | None = None, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values of ``context`` cached tokens of one sequence."""
        return self.total.kv_values * (context or self.context) * bytes_per_value
