"""Batch ramp: small batches first, when gradients agree and noise does no harm, then larger ones.

The size is a function of the tokens seen, not of the step or the process: rows are read in the same order at every batch size, and a run
that is resumed, or has another number of processes, comes to the same batches. Sources: Brown et al. 2020 (GPT-3, linear),
arXiv 2005.14165; Merrill et al. 2025 (doubling as the critical batch size grows), arXiv 2505.23971.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

import pydantic

from slm.config.base import Config
from slm.config.durations import InSteps
from slm.config.errors import ConfigError


class BatchRamp(Config):
    """How the global batch grows to its full size."""

    start: int = pydantic.Field(gt=0)
    """Tokens per step at the beginning: a multiple of ``data.seq_len``."""
    over: InSteps
    """Until the batch is full: tokens, or tokens_per_param."""
    shape: Literal["linear", "double"] = "linear"
    """Growing evenly with the tokens seen, or doubling after equal shares of ``over``."""
    multiple: int = pydantic.Field(1, gt=0)
    """Rows of every batch are a multiple of this: of the largest number of processes that the run shall have."""

    def rows_at(self, tokens: float, *, seq_len: int, batch_tokens: int, params: int) -> int:
        """Rows of the batch that comes after ``tokens``.

        Raises:
            ConfigError: sizes that aren't whole rows, or not multiples; a ramp that goes down.
        """
        first, full = self._rows(self.start, "start", seq_len), self._rows(batch_tokens, "train.batch_tokens", seq_len)
        if first > full:
            raise ConfigError(f"train.batch_ramp: start ({self.start}) is above train.batch_tokens ({batch_tokens}).")
        x = min(1.0, tokens / self.tokens(params))
        if x >= 1:
            return full
        if self.shape == "double":
            doublings = math.ceil(math.log2(full / first))
            return min(full, first * 2 ** math.floor(x * doublings))
        return first + math.floor(x * (full - first) / self.multiple) * self.multiple

    def tokens(self, params: int) -> float:
        """``over`` in tokens."""
        if self.over.unit not in ("tokens", "tokens_per_param") or self.over.value <= 0:
            raise ConfigError(
                f"train.batch_ramp.over={self.over}: give tokens or tokens_per_param; how many steps it is depends on the ramp."
            )
        return self.over.value * (params if self.over.unit == "tokens_per_param" else 1)

    def plan(self, total_tokens: float, *, seq_len: int, batch_tokens: int, params: int) -> "BatchPlan":
        """The batches of a whole run, of ``total_tokens`` rounded to whole batches."""
        starts, rows_before, rows, seen, step = list[int](), list[int](), list[int](), 0, 0
        while seen * seq_len < total_tokens:
            size = self.rows_at(seen * seq_len, seq_len=seq_len, batch_tokens=batch_tokens, params=params)
            if not rows or size != rows[-1]:
                starts, rows_before, rows = [*starts, step], [*rows_before, seen], [*rows, size]
            if seen * seq_len >= self.tokens(params):
                left = max(1, round((total_tokens / seq_len - seen) / size))
                return BatchPlan(seq_len, step + left, tuple(starts), tuple(rows_before), tuple(rows))
            seen, step = seen + size, step + 1
        return BatchPlan(seq_len, step, tuple(starts), tuple(rows_before), tuple(rows))

    def _rows(self, tokens: int, what: str, seq_len: int) -> int:
        rows, rest = divmod(tokens, seq_len)
        if rest or rows % self.multiple:
            raise ConfigError(
                f"train.batch_ramp: {what} ({tokens} tokens) must be a multiple of {self.multiple} rows of {seq_len} tokens."
            )
        return rows


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a run with a ramp, as stretches of equal ones."""

    seq_len: int
    total_steps: int
    starts: tuple[int, ...]
    """First step of each stretch."""
    before: tuple[int, ...]
    """Rows seen before it."""
    rows: tuple[int, ...]
    """Rows of its batches."""

    def rows_of(self, step: int) -> int:
        """Rows of the batch of a 0-based step."""
        return self.rows[self._stretch(step)]

    def rows_before(self, step: int) -> int:
        """Rows seen before a 0-based step: where its batch begins in the order of the data."""
        i = self._stretch(step)
        return self.before[i] + (step - self.starts[i]) * self.rows[i]

    def tokens_before(self, step: int) -> int:
        """Tokens seen before a 0-based step; at ``total_steps``, those of the run."""
        return self.rows_before(step) * self.seq_len

    def step_of(self, row: int) -> int:
        """The 0-based step whose batch has a row."""
        i = bisect_right(self.before, row) - 1
        return self.starts[i] + (row - self.before[i]) // self.rows[i]

    def cut(self, steps: int) -> "BatchPlan":
        """The first ``steps`` steps."""
        kept = max(1, sum(start < steps for start in self.starts))
        return BatchPlan(self.seq_len, steps, self.starts[:kept], self.before[:kept], self.rows[:kept])

    def _stretch(self, step: int) -> int:
        return bisect_right(self.starts, step) - 1
