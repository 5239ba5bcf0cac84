"""`Cost`: what one part costs, as numbers that add up. No torch here.

Forward FLOPs count matrix multiplications only, 2 per multiply-accumulate. They come in two kinds:
``flops`` is paid per token whatever the context, ``flops_per_key`` per token *and* per key it attends to
(4 x heads x head_dim for softmax attention: scores and weighted values). What is paid per key, or cached per
token, depends on how far a layer looks back: those figures are kept by window (None: everything). A sum over
layers therefore gives the model's cost at any attended length: causal, windowed or cut at document ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Windowed = Mapping[int | None, float]
"""Amounts by window: how many of the latest tokens they reach, None for all."""


def _add(a: Windowed, b: Windowed) -> Windowed:
    if not a or not b:  # most parts have no such amounts, and a model is the sum of hundreds
        return a or b
    return {w: a.get(w, 0) + b.get(w, 0) for w in (*a, *(w for w in b if w not in a))}


@dataclass(frozen=True)
class Cost:
    """Cost of a part."""

    params: int = 0
    """Stored values."""
    flops: float = 0
    """Forward FLOPs per token."""
    flops_per_key: Windowed = field(default_factory=dict)
    """Forward FLOPs per token and attended key."""
    kv_values: Windowed = field(default_factory=dict)
    """Numbers cached per token when decoding."""
    state_values: int = 0
    """Numbers cached per sequence, however long (recurrences, convolutions)."""
    reused: int = 0
    """Parameters that are used here again and stored elsewhere."""
    train_only: float = 0
    """Forward FLOPs per token that only training pays (extra prediction depths)."""
    train_only_per_key: Windowed = field(default_factory=dict)
    """The same per attended key: causal over the whole row, whatever is cut at documents."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.params + other.params,
            self.flops + other.flops,
            _add(self.flops_per_key, other.flops_per_key),
            _add(self.kv_values, other.kv_values),
            self.state_values + other.state_values,
            self.reused + other.reused,
            self.train_only + other.train_only,
            _add(self.train_only_per_key, other.train_only_per_key),
        )

    def __mul__(self, times: int) -> "Cost":
        return sum((self for _ in range(times)), Cost())

    __rmul__ = __mul__

    def again(self) -> "Cost":
        """The cost of using the same stored part once more."""
        return replace(self, params=0, reused=self.params + self.reused)

    def for_training(self) -> "Cost":
        """As a part of the training loss alone: its parameters, and its FLOPs as ``train_only`` (full square)."""
        return Cost(params=self.params, train_only=self.flops)

    def forward_flops(self, keys: float) -> float:
        """Forward FLOPs per token when every token attends to ``keys`` positions, windows or not: what an
        implementation that masks a full square executes."""
        return self.flops + sum(self.flops_per_key.values()) * keys

    def causal_flops(self, context: int) -> float:
        """Forward FLOPs per token, on average over the tokens of one sequence of ``context``, each of which attends to
        itself and what stands before it within the layer's window."""
        return self.flops + _causal(self.flops_per_key, context)

    def train_only_flops(self, context: int) -> float:
        """Forward FLOPs per token that only training pays, on average over rows of ``context`` tokens."""
        return self.train_only + _causal(self.train_only_per_key, context)

    def cache_values(self, context: int) -> int:
        """Numbers cached after ``context`` tokens of one sequence."""
        kept = sum(v * min(context, w or context) for w, v in self.kv_values.items())
        return int(kept) + self.state_values


def _causal(per_key: Windowed, context: int) -> float:
    return sum(f * mean_keys(context, w) for w, f in per_key.items())


def mean_keys(context: int, window: int | None) -> float:
    """Mean over t < context of min(t + 1, window)."""
    w = min(window or context, context)
    return (w * (w + 1) / 2 + (context - w) * w) / context


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
        cost, embedding, head = self.total, self.parts["embedding"].params, self.parts["head"].params
        return {
            "total": cost.params + cost.reused,
            "unique": cost.params,
            "embedding": embedding,
            "head": head,
            "non_embedding": cost.params - embedding - head,
        }

    @property
    def flops_per_token(self) -> dict[str, float]:
        """FLOPs per training token: ``forward`` and ``train`` (3 x, with what only training pays) attend causally and
        within windows; ``train_palm`` counts the full square, as PaLM (arXiv 2204.02311, appendix B) and most
        trainers do."""
        cost = self.total
        forward = cost.causal_flops(self.context)
        square = cost.forward_flops(self.context)
        further = cost.train_only_flops(self.context)
        return {
            "forward": forward,
            "train": 3 * (forward + further),
            "train_palm": 3 * (square + further),
        }

    def kv_cache_bytes(self, context: int | None = None) -> int:
        """Bytes that are cached after ``context`` tokens of one sequence in bf16; states that stay fp32 take four each."""
        return 2 * self.total.cache_values(context or self.context)
