"""ALiBi: BLOOM and MPT."""

from __future__ import annotations

from slm.export.families.base import Data, Family, Fixed, Key, Map, Special, same
from slm.export.families.gpt2 import BARE, EPS, FOUR_TIMES
from slm.export.families.neox import FUSED, per_head
from slm.export.families.shared import B, linear, parts, tied
from slm.model.config import Model

H, M = "transformer.h.{i}.", "transformer.blocks.{i}."
ALIBI = parts(position="alibi", norm={"name": "layernorm"}, embedding="tied")
BLOOM = Family(
    "bloom", "BloomForCausalLM",
    ALIBI | {"attention": {"name": "gqa", "qkv_bias": True, "out_bias": True},
             "ffn": {"name": "plain", "bias": True, "activation": "gelu_tanh"}, "embedding": {"name": "tied", "norm": True}},
    (Key("hidden_size", "dim", aliases="n_embed"), Key("n_layer", "layers", aliases="num_hidden_layers"), Key("vocab_size", "vocab"),
     Key("seq_length", "context", 2048), Key("n_head", "attention.heads attention.kv_heads", aliases="num_attention_heads"), FOUR_TIMES,
     EPS, tied(True), Fixed("apply_residual_connection_post_layernorm", False)),
    (same("transformer.word_embeddings.weight", "embedding.weight"), linear("transformer.word_embeddings_layernorm", "embedding.norm"),
     same("lm_head.weight", "embedding.head"), linear("transformer.ln_f", "norm"),
     Map(f"{H}self_attention.query_key_value.{{leaf}}", FUSED, per_head), linear(f"{H}self_attention.dense", f"{B}attention.o"),
     linear(f"{H}mlp.dense_h_to_4h", f"{B}ffn.up"), linear(f"{H}mlp.dense_4h_to_h", f"{B}ffn.down"),
     linear(f"{H}input_layernorm", f"{B}attention_norm"), linear(f"{H}post_attention_layernorm", f"{B}ffn_norm")),
    renames=BARE,
)  # fmt: skip


def _attention_read(config: Data, data: Data) -> None:
    given = config.get("attn_config") or {}
    data["attention"] |= {"clip_qkv": given.get("clip_qkv"), "scale": given.get("softmax_scale")}


def _attention_write(model: Model, data: Data, config: Data) -> None:
    config["attn_config"] = {
        "clip_qkv": data["attention"]["clip_qkv"],
        "softmax_scale": data["attention"]["scale"],
    }


MPT = Family(
    "mpt", "MptForCausalLM",
    ALIBI | {"attention": {"name": "gqa"}, "ffn": {"name": "plain", "activation": "gelu"}, "norm": {"name": "layernorm", "bias": False}},
    (Key("d_model", "dim"), Key("n_layers", "layers"), Key("vocab_size", "vocab"), Key("max_seq_len", "context"),
     Key("n_heads", "attention.heads attention.kv_heads"), FOUR_TIMES, EPS, tied(True), Special(_attention_read, _attention_write),
     Fixed("expansion_ratio", 4), Fixed("no_bias", True), Fixed("logit_scale", None)),
    (same("transformer.wte.weight", "embedding.weight"), same("lm_head.weight", "embedding.head"), linear("transformer.norm_f", "norm"),
     Map(f"{M}attn.Wqkv.weight", tuple(f"{B}attention.{x}.weight" for x in "qkv")), linear(f"{M}attn.out_proj", f"{B}attention.o"),
     linear(f"{M}ffn.up_proj", f"{B}ffn.up"), linear(f"{M}ffn.down_proj", f"{B}ffn.down"),
     linear(f"{M}norm_1", f"{B}attention_norm"), linear(f"{M}norm_2", f"{B}ffn_norm")),
)  # fmt: skip
"""transformers' class ignores qk_ln and alibi_bias_max and always uses ALiBi, whatever the config says."""

FAMILIES = (BLOOM, MPT)
