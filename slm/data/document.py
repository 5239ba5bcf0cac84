"""What a source yields: documents, and honest reports of what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """A text. The hash of ``id`` decides whether it is held out; ``meta`` has the source's other columns."""

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that is no document: where it stands, why, and the ``rule`` under which it is counted."""

    where: str
    why: str
    rule: str = "broken"


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a source that one worker reads in one go; how a source is cut never depends on the workers.

    ``name`` is stable across machines (a path relative to the source's root, with the piece of it);
    ``part`` is a half-open range of the file's row groups (parquet) or bytes (plain lines), None for all of it.
    """

    name: str
    uri: str
    bytes: int
    part: tuple[int, int] | None = None
