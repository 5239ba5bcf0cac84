"""Curves of a long run, made short enough to draw: a page shows some hundred points, a month of training logs a million."""

from __future__ import annotations

import math
from collections.abc import Sequence

LIMIT = 600


def buckets(count: int, limit: int = LIMIT) -> list[slice]:
    """At most ``limit`` runs of neighbours that cover ``count`` points, the last point alone: it is what people look up."""
    size = max(1, math.ceil((count - 1) / max(1, limit - 1)))
    return [slice(i, min(i + size, count - 1)) for i in range(0, count - 1, size)] + (
        [slice(count - 1, count)] if count else []
    )


def thinned(x: Sequence[float], y: Sequence[float], limit: int = LIMIT) -> tuple[list[float], list[float]]:
    """``(x, y)`` as means over neighbours, the last point itself. A mean over a value that isn't finite isn't finite either:
    a gap stays a gap."""
    if len(x) <= limit:
        return list(x), list(y)
    parts = buckets(len(x), limit)
    return [_mean(x[p]) for p in parts], [_mean(y[p]) for p in parts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
