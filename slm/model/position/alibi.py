"""ALiBi: scores fall linearly with distance, at a rate that differs by head."""

from __future__ import annotations

import math

import pydantic
from torch import Tensor

from slm.model.constant import constant
from slm.model.parts import BuildContext
from slm.model.position.base import Position, PositionPart, position


class LinearBias(Position):
    """Slopes of a geometric series."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def slopes(self, heads: int, x: Tensor) -> Tensor | None:
        return constant(tuple(alibi_slopes(heads, self.largest)), x.device, x.dtype)


def alibi_slopes(heads: int, largest: float = 8.0) -> list[float]:
    """2^(-largest i / n) for i = 1..n where n is a power of two; else the published order of interleaving two series."""
    n = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-largest * i / n) for i in range(1, n + 1)]
    return slopes + [2 ** (-largest * i / (2 * n)) for i in range(1, 2 * (heads - n) + 1, 2)]


@position.register("alibi", paper="Press et al. 2021, arXiv 2108.12409")
class Alibi(PositionPart):
    """Attention with linear biases."""

    per_head = True
    largest: float = pydantic.Field(8.0, gt=0)
    """Exponent of the last slope (MPT's alibi_bias_max)."""

    def build(self, ctx: BuildContext) -> Position:
        return LinearBias(self.largest)
