"""RMSNorm decoders that differ from Llama in one or two places each."""

from __future__ import annotations

from slm.export.families.base import Data, Family, Key, Requires, Special, with_defaults
from slm.export.families.layers import FULL, SLIDING, rope, set_layout, windows, write_window_types
from slm.export.families.layouts import Interleaved, SwappedHalves
from slm.export.families.llama import BOTH_BIASES, heads_divide
from slm.export.families.shared import (
    ATTENTION,
    ENDS,
    GATED,
    LLAMA_ITEMS,
    LLAMA_MAPS,
    PRE_NORMS,
    QK_NORMS,
    QKV,
    B,
    L,
    kv_heads,
    linear,
    parts,
    tied,
)
from slm.model.config import Model

MLP_BIAS = Key("mlp_bias", "ffn.bias", False)


def head_rotation(model: Model) -> Interleaved:
    """Heads rotated in neighbouring pairs."""
    width = model.attention.rotary_dim
    fraction = getattr(model.position, "fraction", 1.0)
    return Interleaved(width, int(width * fraction))


INTERLEAVED_ATTENTION = (
    *(linear(f"{L}self_attn.{x}_proj", f"{B}attention.{x}", head_rotation) for x in "qk"),
    *(linear(f"{L}self_attn.{x}_proj", f"{B}attention.{x}") for x in "vo"),
)
"""Attention of models with interleaved rotation."""


def _read_smollm3(config: Data, data: Data) -> None:
    layers = range(data["layers"])
    every = config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in layers]
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    default = [FULL if t or window is None else SLIDING for t in turned]
    types = config.get("layer_types") or default
    names = {(True, False): "full", (False, False): "nope", (True, True): "window", (False, True): "nope-window"}
    near = {"attention": {"window": window}}
    changes: dict[str, Data] = {
        "nope": {"position": "none"},
        "window": near,
        "nope-window": near | {"position": "none"},
    }
    set_layout(data, [names[bool(turned[i]), window is not None and types[i] == SLIDING] for i in layers], changes)


def _write_smollm3(model: Model, data: Data, config: Data) -> None:
    config["no_rope_layers"] = [int(c.position.part_name != "none") for c in model.contexts]
    write_window_types(model, config, unused=None)
    config["use_sliding_window"] = config["sliding_window"] is not None


SMOLLM3 = Family(
    "smollm3", "SmolLM3ForCausalLM", parts(),
    (*with_defaults(LLAMA_ITEMS, num_key_value_heads=kv_heads(4)), rope(base=2_000_000.0), tied(True), BOTH_BIASES, MLP_BIAS, Special(_read_smollm3, _write_smollm3)),
    LLAMA_MAPS,
)  # fmt: skip
GRANITE = Family(
    "granite", "GraniteForCausalLM", parts(),
    (*LLAMA_ITEMS, rope(), tied(), BOTH_BIASES, MLP_BIAS, Key("embedding_multiplier", "embedding.scale", 1.0),
     Key("residual_multiplier", "residual.branch_scale", 1.0), Key("attention_multiplier", "attention.scale", 1.0),
     Key("logits_scaling", "embedding.logit_divisor", 1.0)),
    LLAMA_MAPS,
)  # fmt: skip
ARCEE = Family(
    "arcee", "ArceeForCausalLM", parts(ffn={"name": "plain"}),
    (*with_defaults(LLAMA_ITEMS, hidden_act="relu2", rms_norm_eps=1e-5), rope(), tied(), BOTH_BIASES, MLP_BIAS, Requires(heads_divide)),
    LLAMA_MAPS,
)  # fmt: skip
SEED_OSS = Family(
    "seed_oss", "SeedOssForCausalLM", parts(),
    (*with_defaults(LLAMA_ITEMS, head_dim=128, num_key_value_heads=kv_heads(8)), rope(), tied(),
     Key("attention_bias", "attention.qkv_bias", True), Key("attention_out_bias", "attention.out_bias", False), MLP_BIAS),
    LLAMA_MAPS,
)  # fmt: skip
HUNYUAN = Family(
    "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", parts(attention={"name": "gqa", "qk_norm": "head", "qk_norm_after_position": True}),
    (*with_defaults(LLAMA_ITEMS, rms_norm_eps=1e-5), rope(), tied(), BOTH_BIASES),
    (*ENDS, *ATTENTION, *GATED, *PRE_NORMS,
     linear(f"{L}self_attn.query_layernorm", f"{B}attention.q_norm"), linear(f"{L}self_attn.key_layernorm", f"{B}attention.k_norm")),
)  # fmt: skip
MINISTRAL = Family(
    "ministral",
    "MinistralForCausalLM",
    parts(),
    (*with_defaults(LLAMA_ITEMS, num_key_value_heads=kv_heads(8)), rope(), tied(), windows(default_window=4096)),
    LLAMA_MAPS,
)


def _square_output(model: Model) -> str | None:
    width = (getattr(model.attention, "heads", None) or 0) * model.attention.rotary_dim
    return (
        None
        if width == model.dim
        else f"heads x head_dim is {width}; the class's output projection takes model.dim={model.dim}"
    )


HELIUM = Family(
    "helium", "HeliumForCausalLM", parts(),
    (*with_defaults(LLAMA_ITEMS, rms_norm_eps=1e-8, head_dim=128, num_key_value_heads=kv_heads(20)), rope(base=100_000.0), tied(),
     Key("attention_bias", "attention.qkv_bias", False), MLP_BIAS, Requires(_square_output)),
    (*ENDS, *INTERLEAVED_ATTENTION, *GATED, *PRE_NORMS),
)  # fmt: skip
ERNIE = Family(
    "ernie4_5", "Ernie4_5ForCausalLM", parts(),
    (*with_defaults(LLAMA_ITEMS, rms_norm_eps=1e-5, head_dim=128, num_key_value_heads=kv_heads(2)), rope(base=500_000.0), tied(True),
     Key("use_bias", "attention.qkv_bias attention.out_bias ffn.bias", False)),
    (*ENDS, *INTERLEAVED_ATTENTION, *GATED, *PRE_NORMS),
)  # fmt: skip
APERTUS_ROPE = {
    "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # fmt: skip
APERTUS = Family(
    "apertus", "ApertusForCausalLM", parts(attention__qk_norm="head", ffn={"name": "plain"}),
    (*with_defaults(LLAMA_ITEMS, rms_norm_eps=1e-5), rope(base=12e6, default=APERTUS_ROPE), tied(), BOTH_BIASES),
    (*ENDS, *ATTENTION, *QK_NORMS, *GATED,
     linear(f"{L}attention_layernorm", f"{B}attention_norm"), linear(f"{L}feedforward_layernorm", f"{B}ffn_norm")),
)  # fmt: skip
NANOCHAT = Family(
    "nanochat", "NanoChatForCausalLM",
    parts(attention={"name": "gqa", "qk_norm": "head", "qk_norm_after_position": True}, ffn={"name": "plain"},
          norm={"name": "rmsnorm", "gain": "none"}, embedding={"name": "untied", "norm": True}),
    (*with_defaults(LLAMA_ITEMS, hidden_act="relu2"), rope(), tied(), BOTH_BIASES,
     Key("final_logit_softcapping", "embedding.softcap", 15.0)),
    (*ENDS, *QKV[2:], linear(f"{L}self_attn.o_proj", f"{B}attention.o"),
     *(linear(f"{L}self_attn.{x}_proj", f"{B}attention.{x}", lambda m: SwappedHalves(m.attention.rotary_dim)) for x in "qk"),
     linear(f"{L}mlp.fc1", f"{B}ffn.up"), linear(f"{L}mlp.fc2", f"{B}ffn.down")),
)  # fmt: skip

FAMILIES = (SMOLLM3, GRANITE, ARCEE, SEED_OSS, HUNYUAN, MINISTRAL, HELIUM, ERNIE, APERTUS, NANOCHAT)
