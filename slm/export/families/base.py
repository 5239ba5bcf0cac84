"""A family of Hugging Face checkpoints: how its config.json and its tensors correspond to ours, in both directions.

A family is a list of *items*, each of which stands for one or a few keys of config.json and can be read and written; a
template of what the class always computes; and a list of *maps* between tensor names. Nothing says which models "fit":
a model fits a family if its config, written and read back, is the same model (`Family.write`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from slm.config.errors import ConfigError
from slm.export.families.layouts import ROWS, Layout
from slm.model.config import SLOTS, Model

Data = dict[str, Any]
REQUIRED: Any = object()


FAR = 2
"""Added to the differences of a model that has no config of a family at all, so that nearer classes are named first."""


class Unfit(Exception):
    """A model that the family's class can't compute; says why. ``differences``: in how much it differs."""

    def __init__(self, why: str, differences: int = 1) -> None:
        super().__init__(why)
        self.differences = differences


class Item(Protocol):
    """Some keys of config.json."""

    def read(self, config: Data, data: Data) -> None:
        """Put what the keys say into ``data``, a `Model` as plain data."""

    def write(self, model: Model, data: Data, config: Data) -> None:
        """Put what the model says into ``config``; ``data`` is the model with general parts, as plain data."""


@dataclass(frozen=True)
class Key:
    """One key that stands for the field(s) at ``paths``. ``default``: its value where config.json lacks it, or a function
    of config.json."""

    name: str
    paths: str
    default: Any = REQUIRED
    decode: Callable[[Any], Any] = lambda value: value
    encode: Callable[[Any], Any] = lambda value: value
    aliases: str = ""
    """Names that published configs use instead."""

    def read(self, config: Data, data: Data) -> None:
        found = next((name for name in (self.name, *self.aliases.split()) if name in config), None)
        value = self.default if found is None else config[found]
        if value is REQUIRED:
            raise ConfigError(f"config.json has no {self.name!r}, which its model type needs.")
        if callable(self.default) and (found is None or value is None):  # null, too, asks for what other keys say
            value = self.default(config)
        for path in self.paths.split():
            put(data, path, self.decode(value))

    def write(self, model: Model, data: Data, config: Data) -> None:
        config[self.name] = self.encode(take(data, self.paths.split()[0]))


def with_defaults(items: Iterable[Item], **defaults: Any) -> tuple[Item, ...]:
    """The same items, with a class's own defaults for some keys. Raises KeyError for a key that no item has."""
    found = list(items)
    for i, item in enumerate(found):
        if isinstance(item, Key) and item.name in defaults:
            found[i] = replace(item, default=defaults.pop(item.name))
    if defaults:
        raise KeyError(f"no item for {', '.join(defaults)}")
    return tuple(found)


@dataclass(frozen=True)
class Fixed:
    """A key that must have one value, since another one is not computed here. ``default``: where config.json lacks it."""

    name: str
    value: Any
    also: tuple[Any, ...] = ()
    """Other values that mean the same."""

    def read(self, config: Data, data: Data) -> None:
        if config.get(self.name, self.value) not in (self.value, *self.also):
            raise ConfigError(
                f"config.json says {self.name}={config[self.name]!r}; slm reads this model type with {self.value!r} only."
            )

    def write(self, model: Model, data: Data, config: Data) -> None:
        config[self.name] = self.value


@dataclass(frozen=True)
class Special:
    """Keys that need more than a path."""

    reader: Callable[[Data, Data], None]
    writer: Callable[[Model, Data, Data], None]

    def read(self, config: Data, data: Data) -> None:
        self.reader(config, data)

    def write(self, model: Model, data: Data, config: Data) -> None:
        self.writer(model, data, config)


@dataclass(frozen=True)
class Requires:
    """Something that the class insists on beyond its keys: a function from the model to why it is not so, or None."""

    why_not: Callable[[Model], str | None]

    def read(self, config: Data, data: Data) -> None:
        """Nothing to read."""

    def write(self, model: Model, data: Data, config: Data) -> None:
        if reason := self.why_not(model):
            raise Unfit(reason)


@dataclass(frozen=True)
class Map:
    """One of their tensors and the one or several of ours that it holds; or several of theirs, stacked, that are one of ours.

    ``{i}`` runs over blocks, ``{leaf}`` over weight and bias, ``{h}`` in theirs over what is stacked. A map none of whose
    tensors the model has is left out.
    """

    theirs: str | tuple[str, ...]
    ours: tuple[str, ...]
    layout: Layout | Callable[[Model], Layout] = ROWS
    only: type | None = None
    """Blocks whose attention is of this kind; None: all."""
    when: Callable[[Model], bool] = lambda model: True
    """Models that have it, where a class names the same tensor in several ways."""

    def layout_for(self, model: Model) -> Layout:
        return self.layout if isinstance(self.layout, Layout) else self.layout(model)


def same(theirs: str, ours: str, layout: Layout | Callable[[Model], Layout] = ROWS, only: type | None = None) -> Map:
    """A map of one tensor to one."""
    return Map(theirs, (ours,), layout, only)


@dataclass(frozen=True)
class Family:
    """A model type of transformers."""

    model_type: str
    architecture: str
    template: Data
    """The parts that the class always has, as a `Model`'s plain data."""
    items: tuple[Item, ...]
    maps: tuple[Map, ...]
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors in their files that hold no weights (masks, frequencies)."""
    head: str = "lm_head.weight"
    """Their output embedding, which their files may repeat when it is tied."""
    renames: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement) for names of published files that the class itself renames when it loads them."""
    exports: bool = field(default=True)
    """Whether exporting to it is offered; all can be imported."""

    def read(self, config: Data) -> Model:
        """The model that a config.json describes. Raises `ConfigError` for what slm doesn't compute."""
        data = copy.deepcopy(self.template)
        try:
            for item in self.items:
                item.read(config, data)
        except KeyError as missing:
            raise ConfigError(f"config.json has no {missing}, which its model type needs.") from None
        return Model(**data)

    def write(self, model: Model) -> Data:
        """The config.json of a model. Raises `Unfit`, with the first difference, if the class computes something else."""
        data: Data = {slot: getattr(model, slot).canonical().model_dump(mode="json") for slot in SLOTS}
        data |= {"dim": model.dim, "layers": model.layers, "vocab": model.vocab, "context": model.context}
        data["embedding"]["scale"] = model.embedding.factor(model.dim)
        config: Data = {}
        try:
            for item in self.items:
                item.write(model, data, config)
            back = self.read(config)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            mismatches = _mismatches(self, model) or [f"its config can't be written ({error})"]
            raise Unfit(mismatches[0], FAR + len(mismatches)) from None
        differences = compare(model.canonical(), back.canonical())
        if differences:
            raise Unfit(differences[0], len(differences))
        return config


def _mismatches(family: Family, model: Model) -> list[str]:
    """The slots whose part is another kind than the family's template has."""
    found = []
    for slot, wanted in family.template.items():
        name = wanted if isinstance(wanted, str) else wanted.get("name") if isinstance(wanted, dict) else None
        part = getattr(model, slot, None)
        if name is not None and part is not None and part.canonical().part_name != name:
            found.append(f"model.{slot} is {part.part_name!r}; the class computes {name!r}")
    return found


def compare(ours: Any, theirs: Any, where: str = "model") -> list[str]:
    """Differences of two canonical models, in words; the slots' kinds first."""
    found: list[tuple[int, str]] = []
    _walk(ours, theirs, where, found)
    return [text for _, text in sorted(found, key=lambda f: f[0])]


def _walk(ours: Any, theirs: Any, where: str, found: list[tuple[int, str]]) -> None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.get("name") != theirs.get("name"):
            found.append((0, f"{where} is {ours.get('name')!r}; the class computes {theirs.get('name')!r}"))
            return
        for key in ours.keys() | theirs.keys():
            _walk(ours.get(key), theirs.get(key), f"{where}.{key}", found)
    elif isinstance(ours, list) and isinstance(theirs, list) and where == "model.layers":
        _walk_layers(ours, theirs, found)
    elif ours != theirs:
        found.append((1, f"{where} is {ours!r}; the class computes {theirs!r}"))


def _walk_layers(ours: list[Any], theirs: list[Any], found: list[tuple[int, str]]) -> None:
    if len(ours) != len(theirs):
        found.append((0, f"{len(ours)} layers run; the class runs {len(theirs)}"))
        return
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for slot, x, y in zip(("attention", "ffn", "position"), a, b, strict=False):
            if x != y:
                _walk(x, y, f"model.{slot}", found)
        if a[3:] != b[3:]:
            found.append((0, f"layer {i} shares its weights with another; the class has no shared layers"))
        if found:
            return


def put(data: Data, path: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings; a part given by name alone becomes a mapping."""
    *keys, last = path.split(".")
    for key in keys:
        inner = data.get(key)
        data[key] = {"name": inner} if isinstance(inner, str) else inner if inner is not None else {}
        data = data[key]
    data[last] = value


def take(data: Data, path: str) -> Any:
    """The value at ``a.b.c``. Raises KeyError where a part has no such field."""
    value: Any = data
    for key in path.split("."):
        value = value[key]
    return value
