"""OLMo 1 to 3 and EXAONE 4: non-parametric norms, then norms on what branches write."""

from __future__ import annotations

from dataclasses import replace

from slm.export.families.base import Data, Family, Key, Special, with_defaults
from slm.export.families.layers import (
    SLIDING,
    every,
    rope,
    rope_by_type,
    rope_parameters,
    set_layout,
    write_window_types,
)
from slm.export.families.llama import BOTH_BIASES
from slm.export.families.shared import (
    ATTENTION,
    ENDS,
    GATED,
    HEADS,
    HIDDEN,
    LLAMA_ITEMS,
    LLAMA_MAPS,
    QK_NORMS,
    RMS_EPS,
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

SIZES = (*SHAPE, *HEADS, HIDDEN, act())
EPS = replace(RMS_EPS, default=1e-5)
REORDERED = parts(attention__qk_norm="full", residual="reordered")
POST_NORMS = (
    linear(f"{L}post_attention_layernorm", f"{B}attention_post_norm"),
    linear(f"{L}post_feedforward_layernorm", f"{B}ffn_post_norm"),
)
REORDERED_MAPS = (*ENDS, *ATTENTION, *QK_NORMS, *GATED, *POST_NORMS)

OLMO = Family(
    "olmo", "OlmoForCausalLM", parts(norm={"name": "layernorm", "gain": "none", "bias": False, "eps": 1e-5}),
    (*SIZES, rope(), tied(), BOTH_BIASES, Key("clip_qkv", "attention.clip_qkv", None)),
    LLAMA_MAPS,
)  # fmt: skip
OLMO2 = Family("olmo2", "Olmo2ForCausalLM", REORDERED, (*SIZES, EPS, rope(), tied(), BOTH_BIASES), REORDERED_MAPS)


def _published(config: Data) -> tuple[Data, Data]:
    """Before they were given by layer type: what stretches full layers doesn't touch windowed ones."""
    given = rope_parameters(config)
    return given, {"rope_theta": given.get("rope_theta")}


OLMO3 = Family(
    "olmo3", "Olmo3ForCausalLM", REORDERED,
    (*SIZES, EPS, tied(), BOTH_BIASES, rope_by_type(every(4), _published, bases=(5e5, 5e5))),
    REORDERED_MAPS,
)  # fmt: skip


def _read_exaone(config: Data, data: Data) -> None:
    window = config.get("sliding_window", 4096)
    if window is None:
        return
    pattern = config.get("sliding_window_pattern", 4)
    if isinstance(pattern, str):  # "LLLG": the last of each round sees everything
        pattern = len(pattern)
    types = config.get("layer_types") or every(pattern)(config)
    changes: dict[str, Data] = {"window": {"attention": {"window": window}}, "global": {"position": "none"}}
    set_layout(data, ["window" if t == SLIDING else "global" for t in types], changes)


def _write_exaone(model: Model, data: Data, config: Data) -> None:
    bare = any(
        c.position.part_name == "none" for c in model.contexts
    )  # full layers lose their positions if a window is given
    write_window_types(model, config, unused=4096 if bare else None)


EXAONE4 = Family(
    "exaone4", "Exaone4ForCausalLM", parts(attention__qk_norm="head", residual="reordered"),
    (*with_defaults(LLAMA_ITEMS, rms_norm_eps=1e-5, num_key_value_heads=kv_heads(32)), rope(), tied(), Special(_read_exaone, _write_exaone)),
    REORDERED_MAPS,
)  # fmt: skip

FAMILIES = (OLMO, OLMO2, OLMO3, EXAONE4)
