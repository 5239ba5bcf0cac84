"""Slots and the parts that fill them.

A *slot* is a place in a config where one of several *parts* may stand: ``model.attention``,
``train.optim``, ``data.source``. Each slot has one `Registry`; a part is a `Config` registered under the
name that YAML uses::

    attention = Registry("attention", AttentionPart)

    @attention.register("gqa", paper="Ainslie et al. 2023, arXiv 2305.13245")
    class GroupedQuery(AttentionPart):
        '''One line that `slm parts` shows.'''
        heads: int | None = None

    class Model(Config):
        attention: Annotated[AttentionPart, attention.field()] = "gqa"

In YAML a part is ``attention: gqa`` or ``attention: {name: gqa, heads: 9}``; in Python it is the object
itself. Names are registry names, never import paths, so a config from a stranger can't run code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import pydantic

from slm.config.base import Config, explain
from slm.config.errors import ConfigError, suggest


class Part(Config):
    """A config that fills a slot. Dumps itself as ``{"name": <registry name>, **fields}``."""

    part_name: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    own: ClassVar[tuple[str, ...]] = ()
    """Fields that aren't taken over from the part whose place it takes: they mean something else there."""

    @pydantic.model_serializer(mode="wrap")
    def _dump_with_name(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.part_name, **handler(self)}


P = TypeVar("P", bound=Part)

REGISTRIES: dict[str, "Registry[Any]"] = {}
"""Every slot by name, for `slm parts` and for part swaps on the command line."""


class Registry(Generic[P]):
    """The parts of one slot, by name."""

    def __init__(self, slot: str, base: type[P]) -> None:
        if slot in REGISTRIES:
            raise ValueError(f"slot {slot!r} has a registry already")
        self.slot, self.base, self.parts = slot, base, dict[str, type[P]]()
        REGISTRIES[slot] = self

    def register(self, name: str, *, paper: str = "") -> Callable[[type[P]], type[P]]:
        """Class decorator: make a part known under ``name``; ``paper`` is its citation."""

        def add(cls: type[P]) -> type[P]:
            if name in self.parts and self.parts[name].__qualname__ != cls.__qualname__:
                raise ConfigError(
                    f"{self.slot} {name!r} is registered twice: {self.parts[name].__module__} and {cls.__module__}."
                )
            cls.part_name, cls.slot, cls.paper = name, self.slot, paper
            self.parts[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[P]:
        """The part's class. Raises `ConfigError` with the nearest name."""
        if name not in self.parts:
            raise ConfigError(f"Unknown {self.slot} {name!r}. {suggest(name, self.parts)}")
        return self.parts[name]

    def parse(self, value: Any) -> P:
        """Make a part from YAML's ``name``, ``{name: ..., **fields}``, or hand an instance through."""
        if isinstance(value, self.base):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ConfigError(
                f"{self.slot}: expected a name or a mapping with a 'name', got {value!r}. {suggest('', self.parts)}"
            )
        cls = self.get(value["name"])
        try:
            return cls(**{k: v for k, v in value.items() if k != "name"})
        except pydantic.ValidationError as error:
            raise explain(error, cls, where=f"{self.slot} ({cls.part_name})") from None

    def field(self, *, optional: bool = False) -> Any:
        """Metadata for `typing.Annotated` that makes a pydantic field a slot of this registry; ``optional``: or None."""
        return _SlotField(self, optional)


class _SlotField:
    """Pydantic glue: validate through the registry, dump as the concrete part."""

    def __init__(self, registry: Registry[Any], optional: bool = False) -> None:
        self.registry, self.optional = registry, optional

    def parse(self, value: Any) -> Any:
        return None if value is None and self.optional else self.registry.parse(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema as cs

        return cs.no_info_plain_validator_function(
            self.parse,
            serialization=cs.plain_serializer_function_ser_schema(lambda part: part and part.model_dump()),
        )
