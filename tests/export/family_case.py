"""What a case of a family is; the cases themselves are in `family_cases`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from slm.export.families import Family, family_of

TINY = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT = {
    "vocab_size": 64,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The same for classes with the names of GPT-2."""


@dataclass(frozen=True)
class Case:
    """One configuration. ``numbers``: arguments of their config class."""

    name: str
    family: Family
    config_class: str
    numbers: dict[str, Any]
    tolerance: float = 1e-5
    """Largest |logit difference|, fp32. Above 1e-5 only where the reference is less exact itself: say why."""
    extra: dict[str, Any] = field(default_factory=dict)
    scale: float = 0.1

    def spread(self, name: str, parameter: Tensor) -> float:
        """Standard deviation of what is added to a parameter's start."""
        return self.scale if parameter.ndim > 1 else 0.2


def case(
    name: str, config_class: str, tolerance: float = 1e-5, base: dict[str, Any] | None = None, **changes: Any
) -> Case:
    """A case of the family whose model type is ``name`` up to a space, from TINY (or ``base``) with changes; a change to
    ``...`` removes the key."""
    numbers = {k: v for k, v in ((TINY if base is None else base) | changes).items() if v is not ...}
    return Case(name, family_of(name.split()[0]), config_class, numbers, tolerance)
