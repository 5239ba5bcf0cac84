"""From a recipe and command-line overrides to one validated, frozen config.

Hydra does what it is good at: groups, defaults lists, interpolation, the grammar of values. Four things are
ours: swapping a part without dragging the old one's fields along, fitting a recipe's own values to another
option of a group (`slm.config.choices`), setting any field of the schema without ``+``, and errors that are
one paragraph with the nearest valid name.

An override is one of

=========================  ==========================================================================
``model=smollm2-135m``     another option of a group (a directory in conf/): Hydra's
``model/attention=mha``    another part in a slot: fields that both parts have are kept, the rest dropped
``train.optim.lr=3e-4``    a value, for any field that the schema has (``+`` and ``++`` are accepted)
``~log.eval_every``        back to the schema's default
=========================  ==========================================================================
"""

from __future__ import annotations

import copy
import importlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic
import yaml

from slm.config.base import Config, explain
from slm.config.choices import Choice, clear_siblings, fit, pairs
from slm.config.errors import ConfigError, suggest
from slm.config.paths import conf_dirs, find_recipe, group_options
from slm.config.registry import Registry
from slm.config.schema import Place, locate

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Composed(Generic[C]):
    """A validated config, what was changed on the way (one line each), and the recipe's file."""

    config: C
    notes: list[str]
    source: Path


@dataclass(frozen=True)
class _Override:
    key: str
    value: Any
    delete: bool
    text: str


@dataclass(frozen=True)
class _Swap:
    """A part swap whose note is completed once the new part's defaults are known."""

    place: Place
    old: str
    new: str
    kept: dict[str, Any]
    dropped: dict[str, Any]


def compose(recipe: str, overrides: list[str] | None = None, *, schema: type[C]) -> Composed[C]:
    """Compose a recipe (a name or a path) with overrides into ``schema``.

    Raises:
        ConfigError: for anything that is wrong with either, naming it and the nearest valid choice.
    """
    return compose_all(recipe, [overrides or []], schema=schema)[0]


def compose_all(recipe: str, combinations: list[list[str]], *, schema: type[C]) -> list[Composed[C]]:
    """`compose` with each of several lists of overrides. Hydra, which takes nearly all of the time, is asked once for all that choose
    the same options of groups."""
    path = find_recipe(recipe)
    bases, composed = dict[tuple[str, ...], tuple[dict[str, Any], Choice | None]](), []
    for overrides in combinations:
        parsed = [_parse(text) for text in overrides]
        groups = [o for o in parsed if _is_group(o, schema)]
        chosen = tuple(o.text for o in groups)
        if chosen not in bases:
            bases[chosen] = _hydra(path, list(chosen)), _choice(path, list(chosen)) if chosen else None
        data, choice = copy.deepcopy(bases[chosen])
        composed.append(apply(data, [o for o in parsed if o not in groups], schema, path, choice))
    return composed


def apply(
    data: dict[str, Any], overrides: list[_Override], schema: type[C], source: Path, choice: Choice | None = None
) -> Composed[C]:
    """Put overrides into composed plain data, fitted to the chosen options of groups, and validate."""
    for o in overrides:  # plugins register parts, so they come before anything that names one
        if o.key == "plugins":
            data["plugins"] = list(o.value or [])
    import_plugins(data.get("plugins") or [])
    swaps, notes = list[_Swap](), [*data.get("notes", [])]
    if choice is not None:
        notes += fit(schema, data, choice, {o.key for o in overrides})
    for o in overrides:
        place = locate(schema, data, o.key.replace("/", "."))
        if o.delete:
            place.holder.pop(place.key, None)
        elif place.registry is not None and isinstance(o.value, str):
            notes += clear_siblings(place)
            swaps += _swap(place, place.registry, o.value)
        elif "/" in o.key:
            raise ConfigError(
                f"{o.text!r}: {place.path!r} is no slot for parts; write {place.path}=... to set its value."
            )
        else:
            notes += clear_siblings(place)
            place.holder[place.key] = o.value
    config = validate(schema, data)
    notes += [_describe(swap, config) for swap in swaps]
    if notes and "notes" in schema.model_fields:
        config = config.model_copy(update={"notes": tuple(notes)})
    return Composed(config, notes, source)


def validate(schema: type[C], data: dict[str, Any]) -> C:
    """Make a config from plain data; pydantic's errors become `ConfigError`."""
    try:
        return schema(**{str(k): v for k, v in data.items()})
    except pydantic.ValidationError as error:
        raise explain(error, schema) from None


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """All combinations of ``a=1,2 b=x,y``, the last one varying fastest."""
    axes: list[list[str]] = []
    for text in overrides:
        override = _grammar(text)
        if override.is_sweep_override():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([text])
    return [list(combination) for combination in itertools.product(*axes)]


# ---- Hydra ------------------------------------------------------------------------------------------------


def _choice(path: Path, chosen: list[str]) -> Choice | None:
    """The chosen options by themselves, and the recipe without them; None if either can't stand so."""
    try:
        return Choice(_hydra(path, [f"+{option}" for option in chosen], alone=True), _hydra(path, []))
    except ConfigError:
        return None


def _hydra(path: Path, overrides: list[str], *, alone: bool = False) -> dict[str, Any]:
    """Compose the recipe's defaults and groups with Hydra into plain data; ``alone``: the overrides without the recipe, not interpolated."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_yaml(path)
    search = ",".join(f"'file://{folder}'" for folder in conf_dirs())
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(path.parent), version_base=None):
            base = None if alone else path.stem
            composed = hydra.compose(base, overrides=[f"hydra.searchpath=[{search}]", *overrides])
        data = OmegaConf.to_container(composed, resolve=not alone)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if "Cannot merge DictConfig with ListConfig" in str(error):
            lists = ", ".join(_lists(yaml.safe_load(path.read_text())))
            lines = [f"a list stands where what it builds on has fields. The lists in it: {lists}."]
        raise ConfigError(f"{path}: {' '.join(lines)}") from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _lists(content: dict[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys of the lists in a recipe, but for the list of what it builds on."""
    for key, value in content.items():
        if isinstance(value, list) and above + key != "defaults":
            yield above + key
        elif isinstance(value, dict):
            yield from _lists(value, f"{above}{key}.")


def _check_yaml(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML. {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, this is a {type(content).__name__}.")


def _grammar(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise ConfigError(
            f"{text!r} is no override. Write key=value, such as train.optim.lr=3e-4, model/attention=mha or name=try-1; "
            f"put a value with special characters into quotes."
        ) from None


def _parse(text: str) -> _Override:
    override = _grammar(text)
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(f"{text!r} names several values. Add -m to run them one after the other, or quote the value.")
    value = None if override.is_delete() else override.value()
    return _Override(
        key,
        value,
        override.is_delete(),
        f"{key}={override.get_value_element_as_str()}" if not override.is_delete() else text,
    )


def _is_group(override: _Override, schema: type[Config]) -> bool:
    """Whether an override chooses another option of a group. Raises `ConfigError` for an unknown option."""
    field = schema.model_fields.get(override.key)
    options = group_options(override.key) if "." not in override.key and "/" not in override.key else []
    if not options or not isinstance(override.value, str):
        return False
    if field is not None and Place(schema, override.key, {}, override.key).registry is not None:
        return False  # a slot at the top, such as the tokenizer: a part swap
    if override.value not in options:
        raise ConfigError(
            f"{override.key}={override.value}: there is no such option. {suggest(override.value, options)}"
        )
    return True


# ---- parts and values -------------------------------------------------------------------------------------


def _swap(place: Place, registry: Registry[Any], new: str) -> list[_Swap]:
    """Put part ``new`` into a slot, keeping the fields that it shares with the old one."""
    cls = registry.get(new)
    old = place.holder.get(place.key)
    if old is None:
        default = place.field.get_default(call_default_factory=True)
        if default is None:  # an optional slot that was empty
            place.holder[place.key] = {"name": new}
            return [_Swap(place, "none", new, {}, {})]
        old = {"name": default.part_name}
    old = {"name": old} if isinstance(old, str) else dict(old)
    name = old.pop("name", "?")
    if name == new:
        return []
    kept = {k: v for k, v in old.items() if k in cls.model_fields and k not in cls.own}
    dropped = {k: v for k, v in old.items() if k not in kept and v is not None}
    place.holder[place.key] = {"name": new, **kept}
    return [_Swap(place, name, new, kept, dropped)]


def _describe(swap: _Swap, config: Config) -> str:
    """``model.attention: gqa -> mla (kept heads=9; dropped kv_heads=3; q_rank=288 by default)``."""
    part: Any = config
    for key in swap.place.path.split("."):
        part = part[key] if isinstance(part, dict) else getattr(part, key)
    if part is None:  # a later override emptied the slot again
        return f"{swap.place.path}: {swap.old} -> none"
    default = {k: v for k, v in part.model_dump().items() if k not in swap.kept and k != "name" and v is not None}
    clauses = []
    if swap.kept:
        clauses.append("kept " + pairs(swap.kept))
    if swap.dropped:
        clauses.append("dropped " + pairs(swap.dropped))
    if default:
        clauses.append(pairs(default) + " by default")
    return f"{swap.place.path}: {swap.old} -> {swap.new}" + (f" ({'; '.join(clauses)})" if clauses else "")


def import_plugins(modules: list[str]) -> None:
    """Import a user's own parts; the current directory counts, as for ``python -m``."""
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"plugins: {module!r} can't be imported ({error}). Is it on PYTHONPATH or in this directory?"
            ) from None
