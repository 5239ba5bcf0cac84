"""The processes that save together, as far as a checkpoint needs to know them. The trainer's world is such."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Ranks(Protocol):
    """This process among those that save together."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def any(self, flag: bool) -> bool:
        """Whether any process says yes; the same answer everywhere. Called by all, in the training thread."""


@dataclass(frozen=True)
class Alone:
    """A single process."""

    rank: int = 0
    size: int = 1

    def any(self, flag: bool) -> bool:
        return flag


ALONE = Alone()
