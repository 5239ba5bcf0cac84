"""`Config`: the base of every schema in slm. Frozen, unknown keys forbidden, defaults validated."""

from __future__ import annotations

import types
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

import pydantic

from slm.config.errors import ConfigError, suggest
from slm.config.limits import LARGEST_SEED

Seed = Annotated[int, pydantic.Field(ge=0, le=LARGEST_SEED)]
"""What a random number generator starts from."""


class Config(pydantic.BaseModel):
    """A frozen, typed piece of configuration.

    ``exclusive`` names groups of fields of which at most one may be set (the others stay ``None``): an
    override that sets one of them clears its siblings, so that ``train.budget.steps=5`` replaces a
    recipe's ``tokens_per_param`` instead of contradicting it.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), arbitrary_types_allowed=False
    )
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    bare: ClassVar[str | None] = None
    """Field that a bare number means, as ``keep: 3`` means ``keep: {last: 3}``."""

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        """``given``, or the mapping that it stands for as a bare number."""
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        return {cls.bare: given} if number and cls.bare is not None else given

    @pydantic.model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        return cls.spelled_out(given)

    def with_(self, **changes: Any) -> Self:
        """Return a copy with ``changes`` applied and everything validated again."""
        given = {name: getattr(self, name) for name in type(self).model_fields} | changes
        return type(self)(**given)


def explain(error: pydantic.ValidationError, schema: type[pydantic.BaseModel], where: str = "") -> ConfigError:
    """Turn pydantic's first complaint into one readable paragraph with the nearest valid name."""
    first = error.errors()[0]
    path = ".".join([where, *map(str, first["loc"])] if where else map(str, first["loc"]))
    owner = _owner(schema, first["loc"])
    if first["type"] == "extra_forbidden":
        return ConfigError(f"Unknown key {path!r}. {suggest(str(first['loc'][-1]), owner.model_fields)}")
    if first["type"] == "missing" or first["input"] == "???":  # OmegaConf's mark for a value that must be given
        return ConfigError(f"{path!r} is required and has no default.")
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    got = "" if first["type"] == "value_error" else f" (got {first['input']!r})"
    return ConfigError(f"{path or schema.__name__}: {message}{got}.".replace("..", ".").replace("?.", "?"))


def _owner(schema: type[pydantic.BaseModel], loc: tuple[int | str, ...]) -> type[pydantic.BaseModel]:
    """The class that holds the last key of ``loc``, following nested models as far as they go."""
    owner, kinds = schema, list[Any]([schema])
    for key in loc[:-1]:
        kinds = [inner for kind in kinds for inner in _inside(kind, key)]
        owner = next((kind for kind in kinds if _is_model(kind)), owner)
    return owner


def _inside(kind: Any, key: int | str) -> list[Any]:
    """What may stand under a key of a model, a mapping or a sequence of type ``kind``."""
    if _is_model(kind):
        fields = kind.model_fields
        found = fields.get(key) or next((f for f in fields.values() if f.alias == key), None)
        return _choices(found.annotation) if found is not None else []
    arguments = [argument for argument in get_args(kind) if argument is not ...]
    return _choices(arguments[-1]) if arguments else []  # of dict[str, X], list[X] and tuple[X, ...] it is X


def _choices(annotation: Any) -> list[Any]:
    """X and Y of ``X | Y``; of ``Annotated[X, ...]`` X."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for argument in get_args(annotation) for choice in _choices(argument)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
