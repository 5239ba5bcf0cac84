"""Tiny configurations of every family, one or more each: together they turn every option of the class on and off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from slm.export.families import Family, family_of

TINY = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


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


def case(name: str, config_class: str, tolerance: float = 1e-5, base: dict[str, Any] | None = None, **changes: Any) -> Case:
    """A case of the family whose model type is ``name`` up to a space, from TINY (or ``base``) with changes; a change to
    ``...`` removes the key."""
    numbers = {k: v for k, v in ((TINY if base is None else base) | changes).items() if v is not ...}
    return Case(name, family_of(name.split()[0]), config_class, numbers, tolerance)


CASES: list[Case] = [
    case("llama", "LlamaConfig"),
    case("llama biases head_dim tied", "LlamaConfig", attention_bias=True, mlp_bias=True, head_dim=16, tie_word_embeddings=True),
    case("llama gelu linear", "LlamaConfig", hidden_act="gelu", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    case("llama llama3", "LlamaConfig", rope_parameters={"rope_type": "llama3", "rope_theta": 5e3, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
    case("llama yarn", "LlamaConfig", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}),
    case("llama dynamic", "LlamaConfig", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    case("mistral window", "MistralConfig", sliding_window=5),
    case("mistral", "MistralConfig", sliding_window=None, head_dim=20),
    case("qwen2", "Qwen2Config"),
    case("qwen2 windows", "Qwen2Config", use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=True),
    case("qwen3", "Qwen3Config", head_dim=16),
    case("qwen3 biases windows", "Qwen3Config", head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=6, max_window_layers=2),
]  # fmt: skip
