"""Cohere's parallel blocks and GLM's partial rotation: both rotate neighbouring pairs."""

from __future__ import annotations

from slm.export.families.base import Data, Family, Key, Map, Special, same, with_defaults
from slm.export.families.layers import SLIDING, every, rope, set_layout, write_window_types
from slm.export.families.layouts import Interleaved
from slm.export.families.llama import BOTH_BIASES
from slm.export.families.relatives import INTERLEAVED_ATTENTION
from slm.export.families.shared import (
    ENDS,
    GATED,
    HEADS,
    HIDDEN,
    LAYER_EPS,
    LLAMA_ITEMS,
    PRE_NORMS,
    SHAPE,
    B,
    L,
    act,
    kv_heads,
    linear,
    parts,
    tied,
)
from slm.model.config import Model

SCALE = Key("logit_scale", "embedding.logit_divisor", 0.0625, lambda s: 1 / s, lambda d: 1 / d)
COHERE_PARTS = parts(
    norm={"name": "layernorm", "bias": False}, residual={"name": "parallel", "own_norms": 1}, embedding="tied"
)
COHERE_ITEMS = (*SHAPE, *HEADS, HIDDEN, act(), LAYER_EPS, tied(True), BOTH_BIASES, SCALE)
COHERE_MAPS = (*ENDS, *INTERLEAVED_ATTENTION, *GATED, PRE_NORMS[0])


def _gains(model: Model) -> Interleaved:
    return Interleaved(model.attention.rotary_dim, model.attention.rotary_dim, last=True)


COHERE = Family(
    "cohere", "CohereForCausalLM", COHERE_PARTS,
    (*COHERE_ITEMS, rope(base=500_000.0), Key("use_qk_norm", "attention.qk_norm", False, lambda on: "each" if on else "none", lambda kind: kind == "each")),
    (*COHERE_MAPS, *(same(f"{L}self_attn.{x}_norm.weight", f"{B}attention.{x}_norm.weight", _gains) for x in "qk")),
)  # fmt: skip


def _read_layers(config: Data, data: Data) -> None:
    """Windowed layers rotate, the others have no positions."""
    types = config.get("layer_types") or every(config.get("sliding_window_pattern") or 4)(config)
    window = {"attention": {"window": config.get("sliding_window", 4096)}}
    set_layout(
        data,
        ["window" if t == SLIDING else "global" for t in types],
        {"window": window, "global": {"position": "none"}},
    )


def _write_layers(model: Model, data: Data, config: Data) -> None:
    write_window_types(model, config, unused=4096)


COHERE2 = Family(
    "cohere2",
    "Cohere2ForCausalLM",
    COHERE_PARTS,
    (*COHERE_ITEMS, rope(), Special(_read_layers, _write_layers)),
    COHERE_MAPS,
)

GLM_ITEMS = (
    *with_defaults(LLAMA_ITEMS, rms_norm_eps=1.5625e-7, head_dim=128, num_key_value_heads=kv_heads(2)),
    rope(fraction=0.5, partial=True),
    tied(),
    Key("attention_bias", "attention.qkv_bias", True),
)
FUSED_GATE = Map(f"{L}mlp.gate_up_proj.weight", (f"{B}ffn.gate.weight", f"{B}ffn.up.weight"))
GLM_MAPS = (*ENDS, *INTERLEAVED_ATTENTION, FUSED_GATE, linear(f"{L}mlp.down_proj", f"{B}ffn.down"))
GLM = Family("glm", "GlmForCausalLM", parts(), GLM_ITEMS, (*GLM_MAPS, *PRE_NORMS))
GLM4 = Family(
    "glm4", "Glm4ForCausalLM", parts(residual="sandwich"), GLM_ITEMS,
    (*GLM_MAPS, *PRE_NORMS, linear(f"{L}post_self_attn_layernorm", f"{B}attention_post_norm"),
     linear(f"{L}post_mlp_layernorm", f"{B}ffn_post_norm")),
)  # fmt: skip

FAMILIES = (COHERE, COHERE2, GLM, GLM4)
