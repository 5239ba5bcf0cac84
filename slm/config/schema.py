"""Walking a schema: which class holds a key, what is a slot, which part stands in it.

The data walked beside it is the plain, not yet validated mapping that Hydra composed; a slot's class
depends on the ``name`` that stands there.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from slm.config.base import Config
from slm.config.errors import ConfigError, suggest
from slm.config.registry import Registry, _SlotField


@dataclass(frozen=True)
class Place:
    """A field: the class that holds it, its name, the mapping its value belongs into, and the path to it."""

    owner: type[Config]
    key: str
    holder: dict[str, Any]
    path: str

    @property
    def field(self) -> FieldInfo:
        return self.owner.model_fields[self.key]

    @property
    def registry(self) -> Registry[Any] | None:
        """The slot's registry, if the field is a slot."""
        return slot_registry(self.field)


def slot_registry(field: FieldInfo) -> Registry[Any] | None:
    """The registry behind a slot field; None for an ordinary field."""
    return next((m.registry for m in field.metadata if isinstance(m, _SlotField)), None)


def locate(schema: type[Config], data: dict[str, Any], path: str) -> Place:
    """Find the field at a dotted path, making the mappings on the way.

    Raises:
        ConfigError: a key on the way doesn't exist (with the nearest that does), or has nothing inside.
    """
    owner, holder = schema, data
    keys = path.split(".")
    named = False  # the next key is a user's own name: the field before it maps names to configs
    for depth, key in enumerate(keys):
        where = ".".join(keys[: depth + 1])
        if named:
            named = False
            if depth == len(keys) - 1:
                raise ConfigError(f"{where}: set a field inside, such as {where}.{next(iter(owner.model_fields))}=...")
            inner = holder.get(key)
            holder[key] = holder = dict(inner) if isinstance(inner, dict) else {}
            continue
        if key not in owner.model_fields:
            raise ConfigError(
                f"Unknown key {where!r}. {suggest(key, owner.model_fields)}{_elsewhere(schema, key, path)}"
            )
        place = Place(owner, key, holder, where)
        if depth == len(keys) - 1:
            return place
        owner = _inside(place)
        named = mapped_class(place.field.annotation) is not None
        inner = holder.get(key)
        if isinstance(inner, str):  # "attention: gqa"
            inner = {"name": inner}
        elif inner is None:
            default = place.field.get_default(call_default_factory=True)
            inner = {"name": default.part_name} if place.registry and default is not None else {}
        elif not isinstance(inner, dict) and not isinstance(inner := owner.spelled_out(inner), dict):
            raise ConfigError(f"{where} is {inner!r}, which has no {keys[depth + 1]!r} inside: set {where} as a whole.")
        holder[key] = holder = inner
    raise ConfigError("An override needs a key before '='.")


def _inside(place: Place) -> type[Config]:
    """The class of what stands in a field."""
    if place.registry is not None:
        value = place.holder.get(place.key)
        name = value if isinstance(value, str) else (value or {}).get("name")
        if name is None:
            default = place.field.get_default(call_default_factory=True)
            if default is None:
                raise ConfigError(
                    f"{place.path}: choose a part first, such as {place.path.replace('.', '/')}=<name>. {suggest('', place.registry.parts)}"
                )
            name = default.part_name
        return place.registry.get(name)  # type: ignore[no-any-return]
    nested = config_class(place.field.annotation) or mapped_class(place.field.annotation)
    if nested is None:
        raise ConfigError(f"{place.path!r} is a single value and has no keys inside.")
    return nested


def mapped_class(annotation: Any) -> type[Config] | None:
    """X of a field ``dict[str, X]`` (or None) that maps a user's own names to configs."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((c for c in map(mapped_class, get_args(annotation)) if c), None)
    arguments = get_args(annotation)
    return config_class(arguments[1]) if get_origin(annotation) is dict and len(arguments) == 2 else None


def config_class(annotation: Any) -> type[Config] | None:
    """X of a field ``X`` (or None) that is a config."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((c for c in map(config_class, get_args(annotation)) if c), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def _elsewhere(schema: type[Config], key: str, path: str) -> str:
    """A hint where a top-level key is probably meant to stand, as in ``seed`` for ``train.seed``."""
    if "." in path:
        return ""
    homes = [
        f"{name}.{key}"
        for name, field in schema.model_fields.items()
        if (inner := config_class(field.annotation)) is not None and key in inner.model_fields
    ]
    return f" (Or {' or '.join(homes)}.)" if homes else ""
