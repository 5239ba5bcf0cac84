"""Other token mixers: differential attention, and recurrences between windows of attention."""

from __future__ import annotations

import torch

from slm.export.families.base import Data, Family, Fixed, Key, Map, Special, same
from slm.export.families.layers import rope, set_layout
from slm.export.families.layouts import Reshaped, TransposedStack
from slm.export.families.llama import BOTH_BIASES
from slm.export.families.shared import (
    ATTENTION,
    ENDS,
    GATED,
    HEADS,
    HIDDEN,
    PRE_NORMS,
    SHAPE,
    B,
    L,
    act,
    linear,
    parts,
    tied,
)
from slm.model.attention.rglru import RGLRU
from slm.model.attention.softmax import SoftmaxPart
from slm.model.config import Model


def _spread_read(config: Data, data: Data) -> None:
    data["attention"]["pair_norm"] = {"name": "rmsnorm", "gain": "none", "eps": data["norm"]["eps"]}


def _spread_write(model: Model, data: Data, config: Data) -> None:
    """The pairs' norm has the model's eps; another one is refused when the config is read back."""


DIFFLLAMA = Family(
    "diffllama", "DiffLlamaForCausalLM", parts(attention={"name": "differential"}),
    (*SHAPE, *HEADS, HIDDEN, act(), Key("rms_norm_eps", "norm.eps", 1e-5), rope(), tied(), BOTH_BIASES,
     Key("lambda_std_dev", "attention.lambda_std", 0.1), Special(_spread_read, _spread_write)),
    (*ENDS, *ATTENTION, *GATED, *PRE_NORMS,
     Map(tuple(f"{L}self_attn.lambda_{n}" for n in ("q1", "k1", "q2", "k2")), (f"{B}attention.lambdas",))),
)  # fmt: skip


def embedding_scale(dim: int) -> float:
    """The square root of the width, rounded to bf16 as the published model has it."""
    return float(torch.tensor(dim**0.5, dtype=torch.bfloat16))


def _layers_read(config: Data, data: Data) -> None:
    data["embedding"]["scale"] = embedding_scale(data["dim"])
    types = config.get("block_types") or ("recurrent", "recurrent", "attention")
    order = [types[i % len(types)] for i in range(data["layers"])]
    recurrent = {
        "name": "rglru",
        "width": config.get("lru_width") or data["dim"],
        "heads": config["num_attention_heads"],
    }
    changes = {
        "recurrent": {"attention": recurrent | {"kernel": config.get("conv1d_width", 4)}},
        "window": {"attention": {"window": config.get("attention_window_size", 2048)}},
    }
    set_layout(data, ["recurrent" if t == "recurrent" else "window" for t in order], changes)


def _layers_write(model: Model, data: Data, config: Data) -> None:
    kinds = [isinstance(c.attention, RGLRU) for c in model.contexts]
    config["block_types"] = ["recurrent" if k else "attention" for k in kinds]
    for ctx in model.contexts:
        if isinstance(ctx.attention, RGLRU):
            config |= {"lru_width": ctx.attention.width, "conv1d_width": ctx.attention.kernel}
        else:
            config["attention_window_size"] = window = getattr(ctx.attention, "window", None)
            if window is None:
                raise ValueError("the class's attention has a window")


A, P = f"{L}temporal_block.", f"{B}attention."


def _taps(model: Model) -> Reshaped:
    part = next(c.attention for c in model.contexts if isinstance(c.attention, RGLRU))
    return Reshaped((part.width or 0, 1, part.kernel))


RECURRENT_GEMMA = Family(
    "recurrent_gemma", "RecurrentGemmaForCausalLM",
    parts(attention={"name": "gqa", "out_bias": True}, ffn={"name": "gated", "bias": True, "activation": "gelu_tanh"},
          norm={"name": "rmsnorm", "gain": "one_plus"}),
    (Key("hidden_size", "dim"), Key("num_hidden_layers", "layers"), Key("vocab_size", "vocab"), Key("max_position_embeddings", "context", 8192),
     *HEADS[:2], Key("intermediate_size", "ffn.hidden", decode=lambda both: both // 2, encode=lambda one: 2 * one),
     Fixed("hidden_activation", "gelu_pytorch_tanh"),  # of the recurrence too
     Key("rms_norm_eps", "norm.eps", 1e-6), rope(fraction=0.5, partial=True, kinds=()), tied(True),
     Key("attention_bias", "attention.qkv_bias", False), Key("logits_soft_cap", "embedding.softcap", 30.0),
     Special(_layers_read, _layers_write)),
    (*ENDS[:2], linear("model.final_norm", "norm"), linear(f"{L}temporal_pre_norm", f"{B}attention_norm"),
     linear(f"{L}channel_pre_norm", f"{B}ffn_norm"), *(linear(f"{L}mlp_block.{x}_proj", f"{B}ffn.{x}") for x in ("gate", "up", "down")),
     *(linear(f"{A}{x}_proj", f"{P}{x}", only=SoftmaxPart) for x in "qkvo"), linear(f"{A}linear_y", f"{P}y"), linear(f"{A}linear_x", f"{P}x"),
     linear(f"{A}linear_out", f"{P}o", only=RGLRU), same(f"{A}conv_1d.weight", f"{P}conv.weight", _taps), same(f"{A}conv_1d.bias", f"{P}conv.bias"),
     same(f"{A}rg_lru.recurrent_param", f"{P}decay"),
     same(f"{A}rg_lru.input_gate_weight", f"{P}input_gate.weight", TransposedStack()),
     same(f"{A}rg_lru.recurrent_gate_weight", f"{P}decay_gate.weight", TransposedStack()),
     same(f"{A}rg_lru.input_gate_bias", f"{P}input_gate.bias"), same(f"{A}rg_lru.recurrent_gate_bias", f"{P}decay_gate.bias")),
    (r"model\.normalizer",),
)  # fmt: skip

FAMILIES = (DIFFLLAMA, RECURRENT_GEMMA)
