"""Llama and those that differ from it by biases, norms on queries and keys, windows or multipliers."""

from __future__ import annotations

from slm.export.families.base import Family, Key, Requires, with_defaults
from slm.export.families.layers import SLIDING, rope, windows
from slm.export.families.shared import LLAMA_ITEMS, LLAMA_MAPS, WITHOUT_HEAD_DIM, kv_heads, parts, tied
from slm.model.config import Model

BOTH_BIASES = Key("attention_bias", "attention.qkv_bias attention.out_bias", False)
NOT_ROTARY = (r".*rotary_emb\.inv_freq",)


def heads_divide(model: Model) -> str | None:
    """LlamaConfig refuses other widths, also where head_dim is given."""
    heads = getattr(model.attention, "heads", None) or 1
    return (
        f"model.dim={model.dim} is no multiple of heads={heads}, which the class insists on"
        if model.dim % heads
        else None
    )


def qwen_layers(config: dict) -> list[str]:
    """The first ``max_window_layers`` see everything, the others a window."""
    return [
        SLIDING if i >= config.get("max_window_layers", 28) else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]


LLAMA = Family(
    "llama", "LlamaForCausalLM", parts(),
    (*LLAMA_ITEMS, rope(), tied(), BOTH_BIASES, Key("mlp_bias", "ffn.bias", False), Requires(heads_divide)),
    LLAMA_MAPS, NOT_ROTARY,
)  # fmt: skip
MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    parts(),
    (
        *with_defaults(LLAMA_ITEMS, num_key_value_heads=kv_heads(8)),
        rope(),
        tied(),
        windows(default_window=4096, per_layer=False),
    ),
    LLAMA_MAPS,
    NOT_ROTARY,
)
QWEN2 = Family(
    "qwen2", "Qwen2ForCausalLM", parts(attention__qkv_bias=True),
    (*with_defaults(WITHOUT_HEAD_DIM, num_key_value_heads=kv_heads(32)), rope(), tied(),
     windows(qwen_layers, switch="use_sliding_window", default_window=4096)),
    LLAMA_MAPS, NOT_ROTARY,
)  # fmt: skip
QWEN3 = Family(
    "qwen3", "Qwen3ForCausalLM", parts(attention__qk_norm="head"),
    (*with_defaults(LLAMA_ITEMS, head_dim=128, num_key_value_heads=kv_heads(32)), rope(), tied(), BOTH_BIASES,
     windows(qwen_layers, switch="use_sliding_window", default_window=4096)),
    LLAMA_MAPS, NOT_ROTARY,
)  # fmt: skip


FAMILIES = (LLAMA, QWEN3, QWEN2, MISTRAL)
"""In the order in which an export tries them."""
