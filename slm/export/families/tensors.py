"""Tensors by name, from their files into ours and back. Every tensor on either side is accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.config.errors import RunError
from slm.export.families.base import Family, Map
from slm.export.families.layouts import Layout
from slm.model.config import Model

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """One of their tensors, and ours that it holds; or several of theirs that are stacked into one."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: Layout
    stacked: bool = False
    """Whether theirs are slices of ours, be it one slice."""


def table(family: Family, model: Model, shapes: Shapes) -> list[Entry]:
    """The entries for a model whose parameters have ``shapes``. Raises `RunError` for a parameter without an entry."""
    entries = [entry for one in family.maps if one.when(model) for entry in _expand(one, model, shapes)]
    covered = [name for entry in entries for name in entry.ours]
    missing = sorted(set(shapes) - set(covered))
    if missing or len(covered) != len(set(covered)):
        name = missing[0] if missing else next(n for n in covered if covered.count(n) > 1)
        raise RunError(
            f"slm's table of {family.model_type} tensors has no single place for {name!r}. This is a bug in slm."
        )
    return entries


def _expand(one: Map, model: Model, shapes: Shapes) -> list[Entry]:
    given = (one.theirs,) if isinstance(one.theirs, str) else one.theirs
    text = "".join((*given, *one.ours))
    blocks = (
        [i for i in range(model.layers) if one.only is None or i in _of_kind(model, one.only)] if "{i}" in text else [0]
    )
    leaves = ("weight", "bias") if "{leaf}" in text else ("",)
    found = []
    for i in blocks:
        for leaf in leaves:
            theirs, ours = (
                [n.replace("{i}", str(i)).replace("{leaf}", leaf) for n in names] for names in (given, one.ours)
            )
            if not all(name in shapes for name in ours):
                continue
            stacked = len(theirs) > 1 or "{h}" in theirs[0]
            if "{h}" in theirs[0]:
                theirs = [theirs[0].replace("{h}", str(h)) for h in range(shapes[ours[0]][0])]
            found.append(Entry(tuple(theirs), tuple(ours), one.layout_for(model), stacked))
    return found


def _of_kind(model: Model, kind: type) -> set[int]:
    return {c.block for c in model.contexts if isinstance(c.attention, kind)}


def to_ours(family: Family, model: Model, shapes: Shapes, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters out of their tensors.

    Raises:
        RunError: a tensor is missing, left over, or of another shape than the config says.
    """
    theirs = {_renamed(family, name): tensor for name, tensor in theirs.items()}
    left = {name for name in theirs if not any(re.fullmatch(pattern, name) for pattern in family.ignored)}
    found: dict[str, Tensor] = {}
    for entry in table(family, model, shapes):
        missing = next((name for name in entry.theirs if name not in theirs), None)
        if missing is not None:
            raise RunError(f"The checkpoint has no tensor {missing!r}, which its config.json needs.")
        left -= set(entry.theirs)
        stack = [theirs[name] for name in entry.theirs]
        found |= _split(entry, torch.stack(stack) if entry.stacked else stack[0], shapes)
    if model.embedding.tied:
        left.discard(family.head)
    if left:
        raise RunError(
            f"The checkpoint has {len(left)} tensors that a model of its config.json doesn't have, such as {min(left)!r}."
        )
    return found


def _renamed(family: Family, name: str) -> str:
    for pattern, replacement in family.renames:
        name = re.sub(pattern, replacement, name)
    return name


def _split(entry: Entry, tensor: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    wanted = [tuple(shapes[name]) for name in entry.ours]
    try:
        pieces = entry.layout.split(tensor, wanted)
    except (RuntimeError, IndexError):
        pieces = []
    if [tuple(p.shape) for p in pieces] != wanted:
        raise RunError(
            f"The tensor {entry.theirs[0]!r} has shape {tuple(tensor.shape)}, which doesn't hold {' and '.join(map(str, wanted))} "
            f"as config.json says."
        )
    return dict(zip(entry.ours, pieces, strict=True))


def to_theirs(family: Family, model: Model, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors out of our parameters."""
    shapes = {name: tuple(t.shape) for name, t in ours.items()}
    found: dict[str, Tensor] = {}
    for entry in table(family, model, shapes):
        joined = entry.layout.join([ours[name] for name in entry.ours])
        pieces = joined.unbind(0) if entry.stacked else (joined,)
        found |= {name: piece.contiguous() for name, piece in zip(entry.theirs, pieces, strict=True)}
    return found
