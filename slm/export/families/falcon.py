"""Falcon: LayerNorm, rotary positions, no gates, no biases; one key/value head, groups of them, or as many as queries."""

from __future__ import annotations

from slm.config.errors import ConfigError
from slm.export.families.base import Data, Family, Fixed, Key, Map, Special, same
from slm.export.families.gpt2 import EPS
from slm.export.families.layers import rope
from slm.export.families.layouts import PerHead
from slm.export.families.neox import FUSED
from slm.export.families.shared import B, act, linear, parts, tied
from slm.model.config import Model


def _shape_read(config: Data, data: Data) -> None:
    """``new_decoder_architecture`` overrules ``multi_query`` and brings two norms; without it, side by side means one."""
    heads, parallel = config["num_attention_heads"], config.get("parallel_attn", True)
    norms = config.get("num_ln_in_parallel_attn")
    if config.get("new_decoder_architecture", False):
        kv_heads, norms, crashes = config.get("num_kv_heads") or heads, 2 if norms is None else norms, not parallel
    else:
        kv_heads, crashes = 1 if config.get("multi_query", True) else heads, bool(parallel and norms == 2)
        norms = 1
    if crashes:
        raise ConfigError(
            f"config.json says parallel_attn={parallel!r} and num_ln_in_parallel_attn={config.get('num_ln_in_parallel_attn')!r} with "
            f"new_decoder_architecture={config.get('new_decoder_architecture', False)!r}; no Falcon computes that."
        )
    data["attention"] |= {"heads": heads, "kv_heads": kv_heads}
    data["residual"] = {"name": "parallel", "own_norms": norms} if parallel else {"name": "pre"}


def _shape_write(model: Model, data: Data, config: Data) -> None:
    heads, kv_heads = data["attention"]["heads"], data["attention"]["kv_heads"]
    config["num_attention_heads"], config["num_kv_heads"] = heads, kv_heads
    config["parallel_attn"] = data["residual"]["name"] == "parallel"
    norms = data["residual"]["own_norms"] if config["parallel_attn"] else 1
    config["new_decoder_architecture"] = norms == 2 or kv_heads not in (1, heads)
    config["multi_query"] = kv_heads == 1
    if config["new_decoder_architecture"]:
        config["num_ln_in_parallel_attn"] = norms


def _groups(model: Model) -> PerHead:
    """For each key/value head its queries, then it."""
    return PerHead(getattr(model.attention.canonical(), "kv_heads", None) or 1)


def _two_norms(model: Model) -> bool:
    return getattr(model.residual, "own_norms", 1) == 2


def _one_norm(model: Model) -> bool:
    return not _two_norms(model)


H = "transformer.h.{i}."
FALCON = Family(
    "falcon", "FalconForCausalLM", parts(norm={"name": "layernorm"}, ffn={"name": "plain"}),
    (Key("hidden_size", "dim"), Key("num_hidden_layers", "layers"), Key("vocab_size", "vocab"), Key("max_position_embeddings", "context", 2048),
     Key("ffn_hidden_size", "ffn.hidden", lambda c: 4 * c["hidden_size"]), act("activation", "gelu"), EPS, rope(), tied(True),
     Key("bias", "attention.qkv_bias attention.out_bias ffn.bias", False), Fixed("alibi", False, also=(None,)),
     Special(_shape_read, _shape_write)),
    (same("transformer.word_embeddings.weight", "embedding.weight"), same("lm_head.weight", "embedding.head"),
     linear("transformer.ln_f", "norm"), Map(f"{H}self_attention.query_key_value.{{leaf}}", FUSED, _groups),
     linear(f"{H}self_attention.dense", f"{B}attention.o"), linear(f"{H}mlp.dense_h_to_4h", f"{B}ffn.up"),
     linear(f"{H}mlp.dense_4h_to_h", f"{B}ffn.down"),
     Map(f"{H}ln_attn.{{leaf}}", (f"{B}attention_norm.{{leaf}}",), when=_two_norms),
     Map(f"{H}ln_mlp.{{leaf}}", (f"{B}ffn_norm.{{leaf}}",), when=_two_norms),
     Map(f"{H}input_layernorm.{{leaf}}", (f"{B}attention_norm.{{leaf}}",), when=_one_norm),
     Map(f"{H}post_attention_layernorm.{{leaf}}", (f"{B}ffn_norm.{{leaf}}",), when=_one_norm)),
    (r".*\.rotary_emb\.inv_freq",),
)  # fmt: skip
"""Without ALiBi (Falcon-RW): the class rounds slope times position to bf16, which at a thousand tokens is no longer ALiBi."""

FAMILIES = (FALCON,)
