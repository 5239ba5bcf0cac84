"""The table of variants is complete: a part or an option that nobody added to it fails here."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any, Literal, get_args, get_origin

from slm.config.registry import REGISTRIES, Part
from slm.model.config import SLOTS

from .variants import VARIANTS, model_of

ROOMS = (*SLOTS, "rope_scaling")


def parts_of(name: str) -> list[Part]:
    """All parts of a variant, of its layers too, and the parts inside of parts."""
    model = model_of(name)
    found: list[Part] = [getattr(model, slot) for slot in SLOTS]
    found += [p for ctx in model.contexts for p in (ctx.attention, ctx.ffn, ctx.position)]
    for part in found:  # grows while it is read
        found += [value for _, value in part if isinstance(value, Part)]
    return found


def registered() -> list[type[Part]]:
    """The package's own parts; other tests may have registered theirs."""
    return [cls for slot in ROOMS for cls in REGISTRIES[slot].parts.values() if cls.__module__.startswith("slm.")]


def origin(cls: type[Part], field: str) -> type[Part]:
    """The class that introduced a field: what it does is written there, once for all parts that inherit it."""
    return next(base for base in reversed(cls.__mro__) if field in inspect.get_annotations(base))


def test_every_part_has_a_variant() -> None:
    used = {type(part) for name in VARIANTS for part in parts_of(name)}
    missing = [f"model.{cls.slot}={cls.part_name}" for cls in registered() if cls not in used]
    assert not missing, f"no variant in tests/model/variants.py has {', '.join(missing)}"


def test_every_option_has_a_variant() -> None:
    """Each field differs from its default somewhere; a choice among names takes each of them."""
    seen: dict[tuple[type[Part], str], list[Any]] = defaultdict(list)
    for name in VARIANTS:
        for part in parts_of(name):
            for field, value in part:
                seen[origin(type(part), field), field].append(value)
    missing = set()
    for cls in registered():
        for field, info in cls.model_fields.items():
            home = origin(cls, field)
            values, default = seen[home, field], home.model_fields[field].default
            if all(value == default for value in values):
                missing.add(f"{home.__name__}.{field}")
            choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            missing |= {f"{home.__name__}.{field}={c}" for c in choices if c not in values}
    assert not missing, f"no variant in tests/model/variants.py changes {', '.join(sorted(missing))}"


def test_a_swap_may_keep_any_field_that_two_parts_share() -> None:
    """On the command line a new part keeps what the old one was given: a name that both have must mean values of one kind."""
    examples = {type(part): part for name in VARIANTS for part in parts_of(name)}
    for given in {repr(part): part for name in VARIANTS for part in parts_of(name)}.values():
        for new in [part for part in examples.values() if part.slot == given.slot]:
            new.with_(**{k: v for k, v in given if k in type(new).model_fields and v is not None})
