"""Rules: exceptions to what an optimiser gives a parameter, by its name or its tensor class.

::

    train:
      optim:
        name: muon
        rules:
          - {tensor_class: embedding, lr: x3}
          - {match: '\\.attention\\.', weight_decay: 0}
          - {match: '^blocks\\.0\\.', elementwise: true}

Rules apply from the first to the last, each to what the ones before it left: a number replaces, ``x2`` multiplies. The factors of
the model's parametrisation come after all of them. A rule that matches no parameter is an error: a typo in a pattern must not
train another experiment than the one that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

import pydantic

from slm.config.base import Config
from slm.config.errors import ConfigError, suggest

if TYPE_CHECKING:
    from slm.train.optim.base import NamedParameter


DECAYED = {
    "matrix": True, "head": True, "embedding": False, "norm": False, "bias": False, "conv": False, "scalar": False,
}  # fmt: skip
"""Tensor class -> does weight decay apply. A class that is not listed is an error, never a default."""


def _change(value: Any) -> Any:
    """``x2`` (a factor) as it is; anything else as a number."""
    text = str(value).strip()
    try:
        number = float(text.removeprefix("x"))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigError(
            f"{value!r} is neither a number nor a factor. Write 3e-4 to set, or x2 to multiply; not below 0."
        )
    return text if text.startswith("x") else number


Change = Annotated[float | str, pydantic.BeforeValidator(_change)]


def changed(value: float, change: float | str | None) -> float:
    """``value`` under a change: a number replaces it, ``"x2"`` doubles it, None leaves it."""
    if change is None:
        return value
    return value * float(change[1:]) if isinstance(change, str) else change


class Rule(Config):
    """An exception for the parameters that it matches."""

    match: str | None = None
    """Regular expression that is searched for in parameter names, such as ``\\.ffn\\.down``."""
    tensor_class: str | None = None
    """Tensor class. With ``match``, both must hold."""
    lr: Change | None = None
    """Peak rate: a number, or a factor such as ``x2``."""
    weight_decay: Change | None = None
    """Weight decay: a number (also where none is the default), or a factor."""
    elementwise: bool | None = None
    """Treat a matrix as AdamW does (muon, soap: by AdamW; adam_mini, adafactor: with a second moment per weight)."""
    blocks: int | None = pydantic.Field(None, gt=0)
    """Muon: orthogonalise so many equal blocks of rows by themselves: heads, or the parts of a fused projection."""

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.match is None and self.tensor_class is None:
            raise ConfigError("A rule of train.optim needs 'match' (a regular expression) or 'tensor_class'.")
        if self.tensor_class is not None and self.tensor_class not in DECAYED:
            raise ConfigError(
                f"train.optim.rules: there is no tensor class {self.tensor_class!r}. {suggest(self.tensor_class, DECAYED)}"
            )
        if all(change is None for change in (self.lr, self.weight_decay, self.elementwise, self.blocks)):
            raise ConfigError(
                f"train.optim.rules: {self} changes nothing. Give lr, weight_decay, elementwise or blocks."
            )
        try:
            re.compile(self.match or "")
        except re.error as error:
            raise ConfigError(f"train.optim.rules: {self.match!r} is no regular expression: {error}.") from None
        return self

    def __str__(self) -> str:
        return "rule (" + ", ".join(f"{k}={v!r}" for k, v in self.model_dump().items() if v is not None) + ")"

    def matches(self, p: "NamedParameter") -> bool:
        """Whether the rule is about this parameter."""
        by_class = self.tensor_class is None or self.tensor_class == p.tensor_class
        return by_class and (self.match is None or re.search(self.match, p.name) is not None)


def check_matches(rules: Sequence[Rule], parameters: Sequence["NamedParameter"]) -> None:
    """Raises `ConfigError` naming the first rule that is about no parameter."""
    for rule in rules:
        if not any(rule.matches(p) for p in parameters):
            names = ", ".join(p.name for p in parameters[:3])
            classes = sorted({p.tensor_class for p in parameters})
            raise ConfigError(
                f"train.optim.rules: no parameter matches the {rule}. Names look like {names}, ...; the classes of this model "
                f"are {', '.join(classes)}."
            )
