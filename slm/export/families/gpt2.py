"""GPT, GPT-2, GPT-Neo, GPT-BigCode, OPT and BioGPT: LayerNorm, learned positions, biases nearly everywhere."""

from __future__ import annotations

from slm.config.errors import ConfigError
from slm.export.families.base import Data, Family, Fixed, Key, Map, Special, same
from slm.export.families.layers import set_layout
from slm.export.families.layouts import Layout, PerHead, Transposed
from slm.export.families.shared import HIDDEN, MULTI_HEAD, SHAPE, B, act, linear, parts, tied
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


def _four_times_read(config: Data, data: Data) -> None:
    data["ffn"]["hidden"] = 4 * data["dim"]


def _four_times_write(model: Model, data: Data, config: Data) -> None:
    """The width isn't a setting; another one is refused when the config is read back."""


FOUR_TIMES = Special(_four_times_read, _four_times_write)
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
CONV1D = (
    Map(f"{H}attn.c_attn.{{leaf}}", FUSED, Transposed()),
    linear(f"{H}attn.c_proj", f"{B}attention.o", Transposed()),
    linear(f"{H}mlp.c_fc", f"{B}ffn.up", Transposed()),
    linear(f"{H}mlp.c_proj", f"{B}ffn.down", Transposed()),
)
BARE = ((r"^(?=(wte|wpe|h|ln_f|word_embeddings|word_embeddings_layernorm|blocks|norm_f)\b)", "transformer."),)
"""Published files of the first years lack the prefix."""
MASKS = (r".*\.attn\.(bias|masked_bias)",)

GPT2 = Family(
    "gpt2", "GPT2LMHeadModel", LAYER_PARTS,
    (*SIZES, Key("n_head", "attention.heads attention.kv_heads"), INNER, act("activation_function", "gelu_new"), EPS, tied(True),
     Fixed("scale_attn_weights", True), Fixed("scale_attn_by_inverse_layer_idx", False)),
    (*ENDS, *CONV1D),
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


def fairseq_layer(layer: str) -> tuple[Map, ...]:
    """Names of what a layer of OPT or BioGPT multiplies by."""
    return (
        *(linear(f"{layer}self_attn.{x}_proj", f"{B}attention.{x}") for x in "qkv"),
        linear(f"{layer}self_attn.out_proj", f"{B}attention.o"),
        linear(f"{layer}fc1", f"{B}ffn.up"),
        linear(f"{layer}fc2", f"{B}ffn.down"),
    )


OPT = Family(
    "opt", "OPTForCausalLM", LAYER_PARTS | {"position": {"name": "learned", "offset": 2}, "norm": {"name": "layernorm", "eps": 1e-5}},
    (Key("hidden_size", "dim"), Key("num_hidden_layers", "layers"), Key("vocab_size", "vocab"), Key("max_position_embeddings", "context"),
     *MULTI_HEAD, Key("ffn_dim", "ffn.hidden"), act("activation_function", "relu"), tied(True),
     Key("do_layer_norm_before", "residual.name", True, lambda first: "pre" if first else "post", lambda name: name == "pre"),
     Fixed("layer_norm_elementwise_affine", True), Fixed("_remove_final_layer_norm", False), Special(_opt_read, _opt_write)),
    (same(f"{D}embed_tokens.weight", "embedding.weight"), same(f"{D}embed_positions.weight", "positions.0.weight"),
     same(f"{D}project_in.weight", "embedding.project_in.weight"), same(f"{D}project_out.weight", "embedding.project_out.weight"),
     same("lm_head.weight", "embedding.head"), linear(f"{D}final_layer_norm", "norm"),
     *fairseq_layer(OPT_LAYER),
     *(linear(f"{OPT_LAYER}self_attn_layer_norm", f"{B}attention_{n}") for n in ("norm", "out_norm")),
     *(linear(f"{OPT_LAYER}final_layer_norm", f"{B}ffn_{n}") for n in ("norm", "out_norm"))),
    renames=((r"^decoder\.", D),),
)  # fmt: skip

# The class normalises with torch's default eps, whatever layer_norm_eps says.
G = "biogpt."
BIOGPT_LAYER = f"{G}layers.{{i}}."
BIOGPT = Family(
    "biogpt", "BioGptForCausalLM", LAYER_PARTS | {"position": {"name": "learned", "offset": 2}, "norm": {"name": "layernorm", "eps": 1e-5}},
    (*SHAPE, *MULTI_HEAD, HIDDEN, act(default="gelu"), tied(True),
     Key("scale_embedding", "embedding.scale", True, lambda on: "sqrt_dim" if on else 1.0, lambda factor: factor != 1.0)),
    (same(f"{G}embed_tokens.weight", "embedding.weight"), same(f"{G}embed_positions.weight", "positions.0.weight"),
     same("output_projection.weight", "embedding.head"), linear(f"{G}layer_norm", "norm"), *fairseq_layer(BIOGPT_LAYER),
     linear(f"{BIOGPT_LAYER}self_attn_layer_norm", f"{B}attention_norm"), linear(f"{BIOGPT_LAYER}final_layer_norm", f"{B}ffn_norm")),
    head="output_projection.weight",
)  # fmt: skip


def _spans_read(config: Data, data: Data) -> None:
    groups = config.get("attention_types") or [[["global", "local"], 12]]
    kinds = ["window" if kind == "local" else "full" for names, times in groups for kind in names * times]
    if len(kinds) != data["layers"]:
        raise ConfigError(f"config.json's attention_types names {len(kinds)} layers, but num_layers={data['layers']}.")
    set_layout(data, kinds, {"window": {"attention": {"window": config.get("window_size", 256)}}})


def _spans_write(model: Model, data: Data, config: Data) -> None:
    found = [getattr(c.attention, "window", None) for c in model.contexts]
    config["attention_types"] = [[["global" if w is None else "local" for w in found], 1]]
    config["window_size"] = next((w for w in found if w is not None), 256)  # several are refused when read back


GPT_NEO = Family(
    "gpt_neo", "GPTNeoForCausalLM", LAYER_PARTS | {"attention": {"name": "gqa", "out_bias": True, "scale": 1.0}},
    (Key("hidden_size", "dim"), Key("num_layers", "layers", aliases="num_hidden_layers"), Key("vocab_size", "vocab"),
     Key("max_position_embeddings", "context"), Key("num_heads", "attention.heads attention.kv_heads", aliases="num_attention_heads"),
     Key("intermediate_size", "ffn.hidden", lambda c: 4 * c["hidden_size"]), act("activation_function", "gelu_new"), EPS, tied(True),
     Special(_spans_read, _spans_write)),
    (*ENDS, *(linear(f"{H}attn.attention.{x}_proj", f"{B}attention.{x}") for x in "qkv"),
     linear(f"{H}attn.attention.out_proj", f"{B}attention.o"), linear(f"{H}mlp.c_fc", f"{B}ffn.up"), linear(f"{H}mlp.c_proj", f"{B}ffn.down")),
    (r".*\.attn\.attention\.(bias|masked_bias)",), renames=BARE,
)  # fmt: skip
"""Scores aren't divided by anything; layers see everything or a window."""

AFN = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
"""What the first GPT's class takes these names for."""


def _afn(name: str) -> str:
    if name not in AFN:
        raise ConfigError(f"config.json says afn={name!r}; its class has {', '.join(AFN)}.")
    return AFN[name]


GPT = Family(
    "openai-gpt", "OpenAIGPTLMHeadModel", LAYER_PARTS | {"residual": {"name": "post"}},
    (*SIZES, Key("n_head", "attention.heads attention.kv_heads"), FOUR_TIMES,
     Key("afn", "ffn.activation", "gelu", _afn, {v: k for k, v in reversed(AFN.items())}.__getitem__), EPS, tied(True)),
    (same("transformer.tokens_embed.weight", "embedding.weight"), same("transformer.positions_embed.weight", "positions.0.weight"),
     same("lm_head.weight", "embedding.head"), linear(f"{H}ln_1", f"{B}attention_out_norm"), linear(f"{H}ln_2", f"{B}ffn_out_norm"), *CONV1D),
    MASKS, renames=((r"^(?=(tokens_embed|positions_embed|h)\b)", "transformer."),),
)  # fmt: skip

FAMILIES = (GPT2, BIGCODE, OPT, BIOGPT, GPT_NEO, GPT)
