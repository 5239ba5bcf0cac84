"""Skipping steps whose gradient is out of line.

A gradient many times its usual norm (a broken document, a rare loss spike) does damage that takes long to heal, also when clipped:
Adam's moments carry it on for hundreds of steps. Skipping the step costs one batch. What is usual is the mean and the spread of the last
norms, so no threshold has to be known. All of it happens on the device; `check` returns the flag that optimisers read as ``found_inf``.

A norm above the limit enters the window as the limit. So one outlier doesn't widen the window and blind the guard for what follows it, and
yet a lasting change isn't skipped for ever: each skipped step raises the limit until it lets the new norms through.

Similar guards: OLMo 2's (6 standard deviations over 128 steps; OLMo Team 2025, arXiv 2501.00656), and Huang et al. 2025 ("SPAM", arXiv 2501.06842).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pydantic

from slm.config.base import Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Spikes(Config):
    """Which gradients are outliers. Steps with one that isn't finite are skipped in any case."""

    sigmas: float | None = pydantic.Field(None, gt=0)
    """Standard deviations above the mean of the window from which a norm is an outlier (6 is usual); None: none is."""
    window: int = pydantic.Field(128, gt=1)
    """Steps that say what is usual."""
    after: int = pydantic.Field(64, gt=0)
    """Steps that must be in the window before any is an outlier: the first ones, and those of the warm-up, vary."""
    above: float | None = pydantic.Field(None, gt=0)
    """A norm from which a gradient is an outlier in any case."""
    give_up: int = pydantic.Field(100, gt=0)
    """Steps skipped one after the other after which the run is taken for lost, and ends with an error."""


COUNTS = ("not_finite", "outliers", "in_a_row")
"""What is counted: steps skipped for either reason over the whole run, and those skipped one after the other up to now."""


class SpikeGuard:
    """Decides on the device which steps are skipped, and counts them there."""

    def __init__(self, rules: Spikes, device: "torch.device | str") -> None:
        import torch

        self.rules = rules
        self.norms = torch.zeros(rules.window, dtype=torch.float32, device=device)
        """The last norms, in a ring."""
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        """Finite norms so far."""
        self.counts = torch.zeros(len(COUNTS), dtype=torch.int64, device=device)

    def check(self, norm: "Tensor") -> "Tensor":
        """1.0 if the step with a gradient of this norm (a device scalar, the same on all processes) is to be skipped, else 0.0."""
        import torch

        norm = norm.detach().float().reshape(())
        finite, limit = torch.isfinite(norm), self.limit()
        outlier = finite & (norm > limit)
        place = (self.seen % self.rules.window).reshape(1)
        entry = torch.where(finite, torch.minimum(norm, limit), self.norms[place][0])
        self.norms.scatter_(0, place, entry.reshape(1))
        self.seen += finite
        bad = ~finite | outlier
        self.counts[:2] += torch.stack([~finite, outlier])
        self.counts[2] = (self.counts[2] + 1) * bad
        return bad.float()

    def limit(self) -> "Tensor":
        """The norm above which the next gradient is an outlier; infinite while there is none."""
        import torch

        limit = torch.full_like(self.norms[0], float("inf") if self.rules.above is None else self.rules.above)
        if self.rules.sigmas is None:
            return limit
        held = self.seen.clamp(max=self.rules.window)
        inside = torch.arange(self.rules.window, device=self.norms.device) < held
        count = held.clamp(min=1)
        mean = (self.norms * inside).sum() / count
        spread = (((self.norms - mean) * inside).square().sum() / count).sqrt()
        usual = mean + self.rules.sigmas * spread.clamp(min=1e-3 * mean)  # norms that hardly vary are no reason to skip
        return torch.where(held >= min(self.rules.after, self.rules.window), torch.minimum(usual, limit), limit)

    def read(self) -> dict[str, int]:
        """The counts, for a record. Waits for the device."""
        return dict(zip(COUNTS, self.counts.tolist(), strict=True))

    def state(self) -> dict[str, "Tensor"]:
        """Tensors for a checkpoint."""
        return {"norms": self.norms, "seen": self.seen, "counts": self.counts}

    def restore(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Take back what `state` gave. With another window than then, the guard starts to look again; counts stay."""
        self.counts.copy_(tensors["counts"])
        if tensors["norms"].shape == self.norms.shape:
            self.norms.copy_(tensors["norms"])
            self.seen.copy_(tensors["seen"])
