"""Stretching RoPE to contexts longer than it was trained for. Formulas and constants as in the papers' code and
transformers' ``modeling_rope_utils``; parity tests hold them to it."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from slm.config.errors import ConfigError
from slm.config.registry import Part, Registry
from slm.model.constant import constant


class RopeScaling(Part):
    """Turns RoPE's frequencies into stretched ones."""

    def check_width(self, rotated: int) -> None:
        """Raise `ConfigError` if it can't serve ``rotated`` numbers per head."""

    def stretch(self, frequency_R: Tensor, base: float, positions_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        """(new frequencies, factor on cos and sin)."""
        raise NotImplementedError


rope_scaling = Registry("rope_scaling", RopeScaling)
RopeScalingSlot = Annotated[RopeScaling | None, rope_scaling.field(optional=True)]


@rope_scaling.register("linear", paper="Chen et al. 2023 (position interpolation), arXiv 2306.15595")
class Linear(RopeScaling):
    """Positions divided by ``factor``."""

    factor: float = pydantic.Field(gt=0)
    """How many times longer contexts become."""

    def stretch(self, frequency_R: Tensor, base: float, positions_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        return frequency_R / self.factor, 1.0


@rope_scaling.register("dynamic", paper="bloc97 & emozilla 2023 (dynamic NTK)")
class DynamicNTK(RopeScaling):
    """The base grows with the sequence once it is longer than ``original``.

    A cached key keeps the angle it was written with, as in transformers: past ``original`` tokens, decoding with a
    cache and reading all at once differ.
    """

    factor: float = pydantic.Field(gt=0)
    """How many times longer contexts become."""
    original: int = pydantic.Field(gt=0)
    """Context of the training."""

    def check_width(self, rotated: int) -> None:
        if rotated < 4:
            raise ConfigError(
                "model.position.scaling (dynamic): a single rotated pair turns at the same speed whatever the base. "
                "Rotate at least 4 numbers of each head."
            )

    def stretch(self, frequency_R: Tensor, base: float, positions_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        rotated = 2 * frequency_R.shape[0]
        length = (positions_BT.max() + 1).clamp(min=self.original).float()
        growth = self.factor * length / self.original - (self.factor - 1)
        new_base = base * growth ** (rotated / (rotated - 2))
        exponent = torch.arange(0, rotated, 2, device=frequency_R.device, dtype=torch.float32) / rotated
        return 1.0 / new_base**exponent, 1.0


@rope_scaling.register("llama3", paper="Grattafiori et al. 2024 (Llama 3), arXiv 2407.21783")
class Llama3(RopeScaling):
    """Slow frequencies divided by ``factor``, fast ones kept, those between blended."""

    factor: float = pydantic.Field(gt=0)
    """How many times longer contexts become."""
    original: int = pydantic.Field(8192, gt=0)
    """Context of the training."""
    low: float = pydantic.Field(1.0, gt=0)
    """Frequencies with fewer turns than this within the original context are divided by factor."""
    high: float = pydantic.Field(4.0, gt=0)
    """Frequencies with more turns than this are kept."""

    def check_width(self, rotated: int) -> None:
        if self.low >= self.high:
            raise ConfigError(
                f"model.position.scaling (llama3): low={self.low} must be below high={self.high}: what turns less often than "
                f"low is slow, what turns more often than high is fast."
            )

    def stretch(self, frequency_R: Tensor, base: float, positions_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        wavelength_R = 2 * math.pi / frequency_R
        blend_R = (self.original / wavelength_R - self.low) / (self.high - self.low)
        between_R = (1 - blend_R) * frequency_R / self.factor + blend_R * frequency_R
        slow_R = torch.where(wavelength_R > self.original / self.low, frequency_R / self.factor, frequency_R)
        is_between_R = (wavelength_R >= self.original / self.high) & (wavelength_R <= self.original / self.low)
        return torch.where(is_between_R, between_R, slow_R), 1.0


@rope_scaling.register("yarn", paper="Peng et al. 2023, arXiv 2309.00071")
class Yarn(RopeScaling):
    """Interpolates slow dimensions, keeps fast ones, and sharpens attention by the length factor."""

    factor: float = pydantic.Field(gt=0)
    """How many times longer contexts become."""
    original: int = pydantic.Field(gt=0)
    """Context of the training."""
    beta_fast: float = pydantic.Field(32.0, gt=0)
    """Dimensions with more turns than this within the original context are kept."""
    beta_slow: float = pydantic.Field(1.0, gt=0)
    """Dimensions with fewer turns than this are interpolated."""
    truncate: bool = True
    """Round the borders of the blend to whole dimensions."""
    attention_factor: float | None = None
    """Factor on cos and sin; 0.1 ln(factor) + 1 by default."""

    def stretch(self, frequency_R: Tensor, base: float, positions_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        rotated = 2 * frequency_R.shape[0]

        def border(turns: float) -> float:
            """The dimension that turns so often within the original context."""
            return rotated * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = border(self.beta_fast), border(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotated - 1)
        high += 0.001 if low == high else 0.0
        steps_R = torch.arange(rotated // 2, device=frequency_R.device, dtype=torch.float32)
        keep_R = 1 - ((steps_R - low) / (high - low)).clamp(0, 1)
        stretched_R = frequency_R / self.factor * (1 - keep_R) + frequency_R * keep_R
        default = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        return stretched_R, default if self.attention_factor is None else self.attention_factor


@rope_scaling.register("longrope", paper="Ding et al. 2024, arXiv 2402.13753")
class LongRope(RopeScaling):
    """Searched factors per frequency: ``short`` ones up to ``original`` tokens, ``long`` ones for longer sequences.

    As in transformers the choice falls for the whole sequence by its last position.
    """

    short: tuple[pydantic.PositiveFloat, ...]
    """Divisors of the frequencies up to the original context."""
    long: tuple[pydantic.PositiveFloat, ...]
    """Divisors of the frequencies beyond it."""
    original: int = pydantic.Field(gt=0)
    """Context of the training."""
    attention_factor: float = 1.0
    """Factor on cos and sin; sqrt(1 + ln(longest / original) / ln(original)) in the paper."""

    def check_width(self, rotated: int) -> None:
        for name, factors in (("short", self.short), ("long", self.long)):
            if len(factors) != rotated // 2:
                raise ConfigError(
                    f"model.position.scaling (longrope): {name} has {len(factors)} factors, but {rotated // 2} frequencies are rotated."
                )

    def stretch(self, frequency_R: Tensor, base: float, positions_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        short_R, long_R = (constant(f, frequency_R.device, torch.float32) for f in (self.short, self.long))
        factor_R = torch.where(positions_BT.max() >= self.original, long_R, short_R)
        return frequency_R / factor_R, self.attention_factor
