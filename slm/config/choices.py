"""A group chosen on the command line, and what the recipe says on top of it.

Hydra merges a recipe's own values over any option of a group, although they were written for the option that the recipe names. Where they
don't fit the chosen one, it wins: a slot has the part that it names with the fields that both parts have, and of fields that exclude each other
its own stay. What was kept and what was dropped is said; values that fit stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from slm.config.base import Config
from slm.config.registry import Part
from slm.config.schema import Place, config_class, mapped_class


@dataclass(frozen=True)
class Choice:
    """What the chosen options say by themselves, and what the recipe would have been without them."""

    alone: dict[str, Any]
    usual: dict[str, Any]


def fit(schema: type[Config], data: dict[str, Any], choice: Choice, asked: Collection[str] = ()) -> list[str]:
    """Take out of composed data what doesn't fit the chosen options; one line for each place. Fields that are ``asked`` for too (dotted keys)
    aren't said to be kept."""
    return list(_fit(schema, data, choice.alone, choice.usual, asked, ""))


def clear_siblings(place: Place, spare: Collection[str] = ()) -> list[str]:
    """Remove fields that can't be set together with this one, but for those to spare; says which."""
    notes = []
    for group in place.owner.exclusive:
        if place.key not in group:
            continue
        owner = place.path.rpartition(".")[0]
        for sibling in group:
            if sibling != place.key and sibling not in spare and place.holder.get(sibling) not in (None, []):
                notes.append(f"{owner}: {place.key} replaces {sibling}={place.holder[sibling]}")
                place.holder.pop(sibling)
    return notes


def pairs(fields: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in fields.items())


def _fit(
    owner: type[Config], data: dict[str, Any], alone: Any, usual: Any, asked: Collection[str], path: str
) -> Iterator[str]:
    """`fit` for one mapping of a config of class ``owner``."""
    alone, usual = _fields(alone), _fields(usual)
    said = [key for key, value in alone.items() if value is not None and data.get(key) is not None]
    for key in said:
        yield from clear_siblings(Place(owner, key, data, f"{path}{key}"), said)
    for key, info in owner.model_fields.items():
        place, below = Place(owner, key, data, f"{path}{key}"), (alone.get(key), usual.get(key))
        inside, named = config_class(info.annotation), mapped_class(info.annotation)
        if place.registry is not None and data.get(key) is not None:
            yield from _fit_part(place, _part(below[0]), _part(below[1]), asked)
            inside = place.registry.parts.get(_part(data.get(key)).get("name", ""))
        if inside is not None and isinstance(data.get(key), dict):
            yield from _fit(inside, data[key], *below, asked, f"{place.path}.")
        elif named is not None and isinstance(data.get(key), dict):
            for name, value in data[key].items():
                if isinstance(value, dict):
                    both = _fields(below[0]).get(name), _fields(below[1]).get(name)
                    yield from _fit(named, value, *both, asked, f"{place.path}.{name}.")


def _fit_part(place: Place, alone: dict[str, Any], usual: dict[str, Any], asked: Collection[str]) -> Iterator[str]:
    """Give a slot the part that the chosen option names, if what stands there is none."""
    assert place.registry is not None
    parts, merged = place.registry.parts, _part(place.holder[place.key])
    name, default = merged.get("name"), place.field.get_default(call_default_factory=True)
    usually = default.part_name if isinstance(default, Part) else None
    fits = name in parts and merged.keys() - {"name"} <= parts[name].model_fields.keys()
    if not fits and name is not None and (name not in parts or not alone):
        return  # the recipe's own mistake
    old, new = usual.get("name", usually), name if fits else alone.get("name", None if alone else usually)
    known, written_for = (parts[part].model_fields if part in parts else {} for part in (new, old))
    own = {k: v for k, v in merged.items() if k != "name" and (k not in alone or alone[k] != v)}
    dropped = {k: v for k, v in own.items() if k not in known and k not in alone and k in written_for}
    if own.keys() - known.keys() - dropped.keys():
        return  # a key that no part has
    if not fits and new is None:
        place.holder.pop(place.key)
    elif not fits:
        place.holder[place.key] = {**alone, **{k: v for k, v in merged.items() if k not in dropped}, "name": new}
    kept = {k: v for k, v in own.items() if k in known and f"{place.path}.{k}" not in asked}
    clauses = [f"{verb} {pairs(fields)}" for verb, fields in (("kept", kept), ("dropped", dropped)) if fields]
    if clauses and new != old:
        yield f"{place.path}: {old or 'none'} -> {new or 'none'} ({'; '.join(clauses)})"


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _part(value: Any) -> dict[str, Any]:
    """A part as a mapping, also if its name stands alone."""
    return {"name": value} if isinstance(value, str) else _fields(value)
