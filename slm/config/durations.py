"""Durations with units: ``100 steps``, ``1.5B tokens``, ``20 tokens_per_param``, ``5%``, ``2h``.

A bare number where a duration is expected is refused: steps and tokens differ by five orders of
magnitude, and a guess would be silent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
from pydantic_core import core_schema as cs

from slm.config.errors import ConfigError, suggest

MAGNITUDES = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
UNITS = ("steps", "tokens", "tokens_per_param", "%", *SECONDS)
_PATTERN = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kMBT]?)\s*([a-z_]+|%)\s*$")


@dataclass(frozen=True)
class Duration:
    """A length of training: ``value`` in ``unit``. Build it with `Duration.parse`."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: Any) -> "Duration":
        """Read ``"100 steps"``, ``"1.5B tokens"``, ``"5%"``, ``"2h"``. Raises `ConfigError` naming the units."""
        if isinstance(text, cls):
            return text
        match = _PATTERN.match(text) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(
                f"{text!r} is no duration. Write a number with a unit, such as '100 steps', '1.5B tokens', "
                f"'20 tokens_per_param', '5%' or '2h'."
            )
        number, magnitude, unit = match.groups()
        unit = unit if unit in UNITS else f"{unit}s"  # "1 step", "1 token"
        if unit not in UNITS:
            raise ConfigError(f"{text!r}: unknown unit {unit[:-1]!r}. {suggest(unit, UNITS)}")
        return cls(float(number) * MAGNITUDES[magnitude], unit)

    def __str__(self) -> str:
        value = f"{self.value:.15g}"
        return f"{value}%" if self.unit == "%" else f"{value} {self.unit}"

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds, or None for a unit that is no time."""
        return self.value * SECONDS[self.unit] if self.unit in SECONDS else None

    def to_steps(self, *, batch_tokens: int, params: int, total_steps: int | None = None) -> int:
        """Optimiser steps, rounded to the nearest. A share needs ``total_steps``; a time has no steps."""
        if self.unit == "steps":
            return round(self.value)
        if self.unit == "tokens":
            return round(self.value / batch_tokens)
        if self.unit == "tokens_per_param":
            return round(self.value * params / batch_tokens)
        if self.unit == "%" and total_steps is not None:
            return round(self.value / 100 * total_steps)
        raise ConfigError(
            f"A duration of '{self}' can't be turned into steps here; use steps, tokens or tokens_per_param."
        )

    @classmethod
    def _validated(cls, text: Any) -> "Duration":
        """As `parse`, for pydantic: it says which field was meant."""
        try:
            return cls.parse(text)
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> cs.CoreSchema:
        return cs.no_info_plain_validator_function(
            cls._validated, serialization=cs.plain_serializer_function_ser_schema(str)
        )


def _has_steps(duration: Duration) -> Duration:
    if duration.seconds is not None:
        raise ValueError(
            f"'{duration}' is a time, which may be more steps or fewer: use steps, tokens, tokens_per_param or a share."
        )
    return duration


InSteps = Annotated[Duration, pydantic.AfterValidator(_has_steps)]
"""A duration that is the same number of steps on every machine: not a time."""
