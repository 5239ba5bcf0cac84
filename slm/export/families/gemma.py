"""Gemma 1 to 3 (text): gains of 1 + w, embeddings times the square root of the width, GELU gates."""

from __future__ import annotations

from dataclasses import replace

from slm.export.families.base import Data, Family, Fixed, Key, Requires, with_defaults
from slm.export.families.layers import every, rope, rope_by_type, rope_parameters, windows
from slm.export.families.llama import heads_divide
from slm.export.families.shared import (
    ATTENTION,
    ENDS,
    GATED,
    HEADS,
    HIDDEN,
    LLAMA_MAPS,
    QK_NORMS,
    RMS_EPS,
    SHAPE,
    B,
    L,
    act,
    activation,
    inverse_root,
    kv_heads,
    linear,
    parts,
    tied,
)

BIASES = Key("attention_bias", "attention.qkv_bias attention.out_bias", False)
CAUSAL = Fixed("use_bidirectional_attention", None, also=(False,))
PARTS = parts(norm={"name": "rmsnorm", "gain": "one_plus"}, embedding={"name": "tied", "scale": "sqrt_dim"})
SANDWICH = PARTS | {"residual": {"name": "sandwich"}}
SANDWICH_NORMS = (
    linear(f"{L}input_layernorm", f"{B}attention_norm"),
    linear(f"{L}post_attention_layernorm", f"{B}attention_post_norm"),
    linear(f"{L}pre_feedforward_layernorm", f"{B}ffn_norm"),
    linear(f"{L}post_feedforward_layernorm", f"{B}ffn_post_norm"),
)
SIZES = with_defaults((*SHAPE, *HEADS), head_dim=256)
TANH = "gelu_pytorch_tanh"
LEGACY_ACT = replace(act(default=TANH), decode=lambda name: activation(TANH if name == "gelu" else name))
"""The first files say gelu and mean its tanh form, and so the class reads it."""


GEMMA = Family(
    "gemma", "GemmaForCausalLM", PARTS,
    (*with_defaults(SIZES, num_key_value_heads=kv_heads(16)), HIDDEN, LEGACY_ACT, RMS_EPS, rope(), tied(True), BIASES, CAUSAL),
    LLAMA_MAPS,
)  # fmt: skip
GEMMA2 = Family(
    "gemma2", "Gemma2ForCausalLM", SANDWICH,
    (*with_defaults(SIZES, num_key_value_heads=kv_heads(4)), HIDDEN, act("hidden_activation", TANH), RMS_EPS, rope(), tied(True), BIASES,
     CAUSAL, Requires(heads_divide),
     inverse_root("query_pre_attn_scalar", 256),
     Key("attn_logit_softcapping", "attention.softcap", 50.0), Key("final_logit_softcapping", "embedding.softcap", 30.0),
     windows(every(2), default_window=4096)),
    (*ENDS, *ATTENTION, *GATED, *SANDWICH_NORMS),
)  # fmt: skip


def _published(config: Data) -> tuple[Data, Data]:
    """Bases before they were given by layer type: windowed layers have one of their own."""
    return rope_parameters(config), {"rope_theta": config.get("rope_local_base_freq", 1e4)}


def _types(config: Data) -> list[str]:
    return every(config.get("sliding_window_pattern") or 6)(config)


GEMMA3 = Family(
    "gemma3_text", "Gemma3ForCausalLM", SANDWICH | {"attention": {"name": "gqa", "qk_norm": "head"}},
    (*with_defaults(SIZES, vocab_size=262_208, max_position_embeddings=131_072, num_attention_heads=8, num_key_value_heads=kv_heads(4)),
     HIDDEN, act("hidden_activation", TANH), RMS_EPS, tied(True), BIASES, CAUSAL, Requires(heads_divide),
     Key("final_logit_softcapping", "embedding.softcap", None),  # attn_logit_softcapping is a key, but nothing reads it
     inverse_root("query_pre_attn_scalar", 256), rope_by_type(_types, _published, bases=(1e6, 1e4))),
    (*ENDS, *ATTENTION, *QK_NORMS, *GATED, *SANDWICH_NORMS),
)  # fmt: skip

FAMILIES = (GEMMA, GEMMA2, GEMMA3)
