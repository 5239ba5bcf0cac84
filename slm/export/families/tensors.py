"""Tensors by name, from their files into ours and back. Every tensor on either side is accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from slm.config.errors import RunError
from slm.export.families.base import Family, Map
from slm.export.families.layouts import Layout
from slm.model.config import Model

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """One of their tensors, and ours that it holds."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout


def table(family: Family, model: Model, shapes: Shapes) -> list[Entry]:
    """The entries for a model whose parameters have ``shapes``. Raises `RunError` for a parameter without an entry."""
    entries = [entry for one in family.maps for entry in _expand(one, model, shapes)]
    covered = [name for entry in entries for name in entry.ours]
    missing = sorted(set(shapes) - set(covered))
    if missing or len(covered) != len(set(covered)):
        name = missing[0] if missing else next(n for n in covered if covered.count(n) > 1)
        raise RunError(f"slm's table of {family.model_type} tensors has no single place for {name!r}. This is a bug in slm.")
    return entries


def _expand(one: Map, model: Model, shapes: Shapes) -> list[Entry]:
    text = one.theirs + "".join(one.ours)
    blocks = range(model.layers) if "{i}" in text else (0,)
    leaves = ("weight", "bias") if "{leaf}" in text else ("",)
    found = []
    for i in blocks:
        for leaf in leaves:
            theirs, *ours = (n.replace("{i}", str(i)).replace("{leaf}", leaf) for n in (one.theirs, *one.ours))
            if all(name in shapes for name in ours):
                found.append(Entry(theirs, tuple(ours), one.layout_for(model)))
    return found


def to_ours(family: Family, model: Model, shapes: Shapes, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters out of their tensors.

    Raises:
        RunError: a tensor is missing, left over, or of another shape than the config says.
    """
    left = {name for name in theirs if not any(re.fullmatch(pattern, name) for pattern in family.ignored)}
    found: dict[str, Tensor] = {}
    for entry in table(family, model, shapes):
        if entry.theirs not in theirs:
            raise RunError(f"The checkpoint has no tensor {entry.theirs!r}, which its config.json needs.")
        left.discard(entry.theirs)
        found |= _split(entry, theirs[entry.theirs], shapes)
    if model.embedding.tied:
        left.discard(family.head)
    if left:
        raise RunError(
            f"The checkpoint has {len(left)} tensors that a model of its config.json doesn't have, such as {min(left)!r}."
        )
    return found


def _split(entry: Entry, tensor: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    wanted = [tuple(shapes[name]) for name in entry.ours]
    try:
        pieces = entry.layout.split(tensor, wanted)
    except (RuntimeError, IndexError):
        pieces = []
    if [tuple(p.shape) for p in pieces] != wanted:
        raise RunError(
            f"The tensor {entry.theirs!r} has shape {tuple(tensor.shape)}, which doesn't hold {' and '.join(map(str, wanted))} "
            f"as config.json says."
        )
    return dict(zip(entry.ours, pieces, strict=True))


def to_theirs(family: Family, model: Model, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors out of our parameters."""
    shapes = {name: tuple(t.shape) for name, t in ours.items()}
    return {
        entry.theirs: entry.layout.join([ours[name] for name in entry.ours]).contiguous()
        for entry in table(family, model, shapes)
    }
