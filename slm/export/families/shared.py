"""Items and maps that many families share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from slm.config.errors import ConfigError, suggest
from slm.export.families.base import Data, Item, Key, Map, put, same
from slm.export.families.layouts import ROWS

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2", "sigmoid": "sigmoid", "tanh": "tanh", "mish": "mish",
    "linear": "identity",
}  # fmt: skip
"""transformers' names -> ours."""
_THEIRS = {"gelu_tanh": "gelu_pytorch_tanh"} | {v: k for k, v in reversed(ACTIVATIONS.items()) if v != "gelu_tanh"}


def activation(name: str) -> str:
    """Our name of an activation. Raises `ConfigError` for one that slm doesn't have."""
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"config.json names the activation {name!r}, which slm doesn't have. {suggest(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def act(key: str = "hidden_act", default: str = "silu") -> Key:
    """The feed-forward's activation."""
    return Key(key, "ffn.activation", default, activation, _THEIRS.__getitem__)


def tied(default: bool = False) -> Key:
    """Whether one matrix embeds and scores."""
    return Key(
        "tie_word_embeddings", "embedding.name", default, lambda t: "tied" if t else "untied", lambda n: n == "tied"
    )


SHAPE = (
    Key("hidden_size", "dim"),
    Key("num_hidden_layers", "layers"),
    Key("vocab_size", "vocab"),
    Key("max_position_embeddings", "context"),
)
HEADS = (
    Key("num_attention_heads", "attention.heads"),
    Key("num_key_value_heads", "attention.kv_heads", lambda c: c["num_attention_heads"], encode=lambda g: g),
    Key("head_dim", "attention.head_dim", lambda c: None),
)
RMS_EPS = Key("rms_norm_eps", "norm.eps", 1e-6)
HIDDEN = Key("intermediate_size", "ffn.hidden")
LAYER_EPS = Key("layer_norm_eps", "norm.eps", 1e-5)
MULTI_HEAD = (Key("num_attention_heads", "attention.heads attention.kv_heads"),)
"""Classes without grouped queries or a head width of their own."""


def kv_heads(default: int) -> Callable[[Data], int]:
    """A class's own number of key/value heads where config.json lacks the key; where it is null, one per query head."""
    return lambda c: c["num_attention_heads"] if "num_key_value_heads" in c else default


def inverse_root(key: str, default: int) -> Key:
    """A whole number s with scores scaled by 1 / sqrt(s)."""

    def encode(scale: float) -> int:
        found = round(scale**-2, 9)
        if found != int(found):
            raise ValueError(f"attention.scale={scale} is not 1 / sqrt of a whole number")
        return int(found)

    return Key(key, "attention.scale", default, lambda s: s**-0.5, encode)


L = "model.layers.{i}."
B = "blocks.{i}."


def linear(theirs: str, ours: str, layout: Any = ROWS, only: type | None = None) -> Map:
    """A layer with weight and, perhaps, bias."""
    return same(theirs + ".{leaf}", ours + ".{leaf}", layout, only)


ENDS = (
    same("model.embed_tokens.weight", "embedding.weight"),
    same("lm_head.weight", "embedding.head"),
    same("lm_head.bias", "embedding.head_bias"),
    linear("model.norm", "norm"),
)
QKV = tuple(linear(f"{L}self_attn.{x}_proj", f"{B}attention.{x}") for x in "qkv")
ATTENTION = (*QKV, linear(f"{L}self_attn.o_proj", f"{B}attention.o"))
QK_NORMS = tuple(linear(f"{L}self_attn.{x}_norm", f"{B}attention.{x}_norm") for x in "qk")
GATED = tuple(linear(f"{L}mlp.{x}_proj", f"{B}ffn.{x}") for x in ("gate", "up", "down"))
PRE_NORMS = (
    linear(f"{L}input_layernorm", f"{B}attention_norm"),
    linear(f"{L}post_attention_layernorm", f"{B}ffn_norm"),
)
LLAMA_MAPS = (*ENDS, *ATTENTION, *QK_NORMS, *GATED, *PRE_NORMS)
LLAMA_ITEMS: tuple[Item, ...] = (*SHAPE, *HEADS, HIDDEN, act(), RMS_EPS)
WITHOUT_HEAD_DIM = tuple(item for item in LLAMA_ITEMS if item is not HEADS[2])
LLAMA_PARTS: Data = {
    "attention": {"name": "gqa"},
    "ffn": {"name": "gated"},
    "norm": {"name": "rmsnorm"},
    "position": {"name": "rope"},
    "residual": {"name": "pre"},
    "embedding": {"name": "untied"},
}


def parts(**changes: Any) -> Data:
    """The parts of Llama with changes, such as ``norm={"name": "layernorm"}`` or ``attention__qk_norm="head"``."""
    data = copy.deepcopy(LLAMA_PARTS)
    for path, value in changes.items():
        put(data, path.replace("__", "."), value)
    return data
