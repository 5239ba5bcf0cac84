"""Which checkpoints of a run stay."""

from __future__ import annotations

import pydantic

from slm.config.base import Config
from slm.config.durations import InSteps


class Retention(Config):
    """Which checkpoints stay when a new one is written. Any one reason is enough; a pinned checkpoint always stays.

    A bare number means ``last``: ``log.keep=5``.
    """

    bare = "last"

    last: int = pydantic.Field(2, gt=0)
    """The newest ones."""
    every: InSteps | None = None
    """For good: the first checkpoint in each further stretch of this length, such as '10B tokens'; None: none for this reason."""
    best: int = pydantic.Field(0, ge=0)
    """Those with the fewest held-out bits per byte, among the checkpoints that were evaluated at their step."""
