"""The registry as plain data: slots, parts, fields, defaults, what they mean."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from typing import Any

from slm.config.errors import ConfigError, suggest
from slm.config.registry import REGISTRIES, Part


def list_parts() -> list[dict[str, str]]:
    """Every registered part, by slot: ``slot``, ``name``, ``summary``, ``paper``."""
    return [
        {"slot": slot, "name": name, "summary": _summary(cls), "paper": cls.paper}
        for slot, registry in REGISTRIES.items()
        for name, cls in registry.parts.items()
    ]


def describe_part(name: str) -> list[dict[str, Any]]:
    """Fields, types, defaults and meanings of the part(s) of this name. Raises `ConfigError` for an unknown one."""
    found = [(slot, r.parts[name]) for slot, r in REGISTRIES.items() if name in r.parts]
    if not found:
        raise ConfigError(
            f"There is no part {name!r}. {suggest(name, [p for r in REGISTRIES.values() for p in r.parts])}"
        )
    return [
        {"slot": slot, "name": name, "summary": _summary(cls), "paper": cls.paper, "fields": _fields(cls)}
        for slot, cls in found
    ]


def _summary(cls: type[Part]) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def _fields(cls: type[Part]) -> list[dict[str, Any]]:
    meanings = _meanings(cls)
    rows = []
    for name, field in cls.model_fields.items():
        default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
        kind = getattr(field.annotation, "__name__", str(field.annotation)).replace("typing.", "")
        if " | " in str(field.annotation):
            kind = str(field.annotation)
        rows.append(
            {
                "name": name,
                "type": kind,
                "default": _unset(cls) if default == "None" else default,
                "meaning": meanings.get(name, ""),
            }
        )
    return rows


def _unset(cls: type[Part]) -> str:
    """What a default of None means: parts of the model are completed from its width."""
    return "from the width" if cls.__module__.startswith("slm.model.") else "none"


def _meanings(cls: type[Part]) -> dict[str, str]:
    """The strings written under fields, of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base in (object, Part) or not issubclass(base, Part.__mro__[1]) or base.__module__.startswith("pydantic"):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        statements = getattr(body, "body", [])
        for field, text in itertools.pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[union-attr]
    return found
