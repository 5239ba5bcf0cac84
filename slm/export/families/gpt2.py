"""GPT-2, GPT-BigCode and OPT: LayerNorm, learned positions, biases everywhere."""

from __future__ import annotations

from slm.export.families.base import Data, Family, Fixed, Key, Map, Special, same
from slm.export.families.layouts import Layout, PerHead, Transposed
from slm.export.families.shared import MULTI_HEAD, B, act, linear, parts, tied
from slm.model.config import Model

LAYER_PARTS = parts(
    attention={"name": "gqa", "qkv_bias": True, "out_bias": True},
    ffn={"name": "plain", "bias": True},
    norm={"name": "layernorm"},
    position={"name": "learned"},
)
"""LayerNorm, ungated feed-forward, learned positions, biases."""
EPS = Key("layer_norm_epsilon", "norm.eps", 1e-5)
SIZES = (
    Key("n_embd", "dim"),
    Key("n_layer", "layers"),
    Key("vocab_size", "vocab"),
    Key("n_positions", "context", aliases="n_ctx"),
)


def _inner_read(config: Data, data: Data) -> None:
    data["ffn"]["hidden"] = config.get("n_inner") or 4 * config["n_embd"]


def _inner_write(model: Model, data: Data, config: Data) -> None:
    config["n_inner"] = data["ffn"]["hidden"]


INNER = Special(_inner_read, _inner_write)
H = "transformer.h.{i}."
ENDS = (
    same("transformer.wte.weight", "embedding.weight"),
    same("transformer.wpe.weight", "positions.0.weight"),
    same("lm_head.weight", "embedding.head"),
    linear("transformer.ln_f", "norm"),
    linear(f"{H}ln_1", f"{B}attention_norm"),
    linear(f"{H}ln_2", f"{B}ffn_norm"),
)
FUSED = tuple(f"{B}attention.{x}.{{leaf}}" for x in "qkv")
BARE = ((r"^(?=(wte|wpe|h|ln_f|word_embeddings|word_embeddings_layernorm|blocks|norm_f)\b)", "transformer."),)
"""Published files of the first years lack the prefix."""
MASKS = (r".*\.attn\.(bias|masked_bias)",)

GPT2 = Family(
    "gpt2", "GPT2LMHeadModel", LAYER_PARTS,
    (*SIZES, Key("n_head", "attention.heads attention.kv_heads"), INNER, act("activation_function", "gelu_new"), EPS, tied(True),
     Fixed("scale_attn_weights", True), Fixed("scale_attn_by_inverse_layer_idx", False)),
    (*ENDS, Map(f"{H}attn.c_attn.{{leaf}}", FUSED, Transposed()), linear(f"{H}attn.c_proj", f"{B}attention.o", Transposed()),
     linear(f"{H}mlp.c_fc", f"{B}ffn.up", Transposed()), linear(f"{H}mlp.c_proj", f"{B}ffn.down", Transposed())),
    MASKS, renames=BARE,
)  # fmt: skip


def _bigcode_read(config: Data, data: Data) -> None:
    data["attention"]["heads"] = config["n_head"]
    data["attention"]["kv_heads"] = 1 if config.get("multi_query", True) else config["n_head"]


def _bigcode_write(model: Model, data: Data, config: Data) -> None:
    config["n_head"] = data["attention"]["heads"]
    config["multi_query"] = data["attention"]["kv_heads"] == 1


def _bigcode_layout(model: Model) -> Layout:
    part = model.attention.canonical()
    return Layout() if getattr(part, "kv_heads", 1) == 1 else PerHead(getattr(part, "heads", 1))


BIGCODE = Family(
    "gpt_bigcode", "GPTBigCodeForCausalLM", LAYER_PARTS,
    (*SIZES, Special(_bigcode_read, _bigcode_write), INNER, act("activation_function", "gelu_pytorch_tanh"), EPS, tied(True),
     Fixed("scale_attn_weights", True)),
    (*ENDS, Map(f"{H}attn.c_attn.{{leaf}}", FUSED, _bigcode_layout), linear(f"{H}attn.c_proj", f"{B}attention.o"),
     linear(f"{H}mlp.c_fc", f"{B}ffn.up"), linear(f"{H}mlp.c_proj", f"{B}ffn.down")),
    MASKS, renames=BARE,
)  # fmt: skip


def _opt_read(config: Data, data: Data) -> None:
    width, bias = config.get("word_embed_proj_dim"), config.get("enable_bias", True)
    data["embedding"]["rank"] = None if width in (None, config["hidden_size"]) else width
    data["attention"] |= {"qkv_bias": bias, "out_bias": bias}
    data["ffn"]["bias"] = bias


def _opt_write(model: Model, data: Data, config: Data) -> None:
    config["word_embed_proj_dim"] = data["embedding"]["rank"] or model.dim
    config["enable_bias"] = data["ffn"]["bias"]


D = "model.decoder."
OPT_LAYER = f"{D}layers.{{i}}."
OPT = Family(
    "opt", "OPTForCausalLM", LAYER_PARTS | {"position": {"name": "learned", "offset": 2}, "norm": {"name": "layernorm", "eps": 1e-5}},
    (Key("hidden_size", "dim"), Key("num_hidden_layers", "layers"), Key("vocab_size", "vocab"), Key("max_position_embeddings", "context"),
     *MULTI_HEAD, Key("ffn_dim", "ffn.hidden"), act("activation_function", "relu"), tied(True),
     Key("do_layer_norm_before", "residual.name", True, lambda first: "pre" if first else "post", lambda name: name == "pre"),
     Fixed("layer_norm_elementwise_affine", True), Fixed("_remove_final_layer_norm", False), Special(_opt_read, _opt_write)),
    (same(f"{D}embed_tokens.weight", "embedding.weight"), same(f"{D}embed_positions.weight", "positions.0.weight"),
     same(f"{D}project_in.weight", "embedding.project_in.weight"), same(f"{D}project_out.weight", "embedding.project_out.weight"),
     same("lm_head.weight", "embedding.head"), linear(f"{D}final_layer_norm", "norm"),
     *(linear(f"{OPT_LAYER}self_attn.{x}_proj", f"{B}attention.{x}") for x in "qkv"),
     linear(f"{OPT_LAYER}self_attn.out_proj", f"{B}attention.o"),
     linear(f"{OPT_LAYER}fc1", f"{B}ffn.up"), linear(f"{OPT_LAYER}fc2", f"{B}ffn.down"),
     *(linear(f"{OPT_LAYER}self_attn_layer_norm", f"{B}attention_{n}") for n in ("norm", "out_norm")),
     *(linear(f"{OPT_LAYER}final_layer_norm", f"{B}ffn_{n}") for n in ("norm", "out_norm"))),
    renames=((r"^decoder\.", D),),
)  # fmt: skip

FAMILIES = (GPT2, BIGCODE, OPT)
