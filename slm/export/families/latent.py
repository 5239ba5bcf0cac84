"""Multi-head latent attention: MiniCPM3, Youtu and the dense form of DeepSeek-V2 and V3."""

from __future__ import annotations

import math

from slm.config.errors import ConfigError
from slm.export.families.base import Data, Family, Fixed, Item, Key, Requires, Special, with_defaults
from slm.export.families.layers import rope, rope_parameters, yarn_sharpness
from slm.export.families.layouts import Interleaved
from slm.export.families.llama import heads_divide
from slm.export.families.relatives import MLP_BIAS
from slm.export.families.shared import ENDS, GATED, HIDDEN, PRE_NORMS, RMS_EPS, SHAPE, B, L, act, linear, parts, tied
from slm.model.attention.mla import Latent
from slm.model.config import Model

PARTS = parts(attention={"name": "mla", "latent_norm": {"name": "rmsnorm", "eps": 1e-6}})
"""The classes give the latents' norms their default eps, whatever rms_norm_eps says."""


def _scale_read(config: Data, data: Data) -> None:
    scaling = rope_parameters(config)
    if scaling.get("rope_type") == "yarn" and scaling.get("mscale_all_dim"):
        part, sharp = data["attention"], yarn_sharpness(scaling, "mscale_all_dim")
        part["scale"] = (part["nope_dim"] + part["rope_dim"]) ** -0.5 * sharp * sharp


def _scale_write(model: Model, data: Data, config: Data) -> None:
    part, scaling = data["attention"], config["rope_parameters"]
    config["num_key_value_heads"] = part["heads"]
    sharp = (part["scale"] * (part["nope_dim"] + part["rope_dim"]) ** 0.5) ** 0.5
    if abs(sharp - 1) > 1e-9 and scaling["rope_type"] == "yarn" and scaling["factor"] > 1:
        scaling["mscale_all_dim"] = round((sharp - 1) / (0.1 * math.log(scaling["factor"])), 9)


def mla_items(*, q_rank: int | None, v_dim: object) -> tuple[Item, ...]:
    """The keys of latent attention and of its positions; ``q_rank`` and ``v_dim`` are the class's defaults."""
    return (
        Key("num_attention_heads", "attention.heads"),
        rope(),  # first: the scale of the scores depends on how positions are stretched
        Key("q_lora_rank", "attention.q_rank", q_rank, lambda r: r or 0, lambda r: r or None),
        Key("kv_lora_rank", "attention.kv_rank", 512),
        Key("qk_nope_head_dim", "attention.nope_dim", 128),
        Key("qk_rope_head_dim", "attention.rope_dim", 64),
        Key("v_head_dim", "attention.v_dim", v_dim),
        Key("attention_bias", "attention.qkv_bias attention.out_bias", False),
        Special(_scale_read, _scale_write),
    )


def _part(model: Model) -> Latent:
    assert isinstance(model.attention, Latent)
    return model.attention


def _queries(model: Model) -> Interleaved:
    part = _part(model)
    return Interleaved(part.key_dim, part.rope_dim, part.nope_dim)


def _latents(model: Model) -> Interleaved:
    part = _part(model)
    return Interleaved((part.kv_rank or 0) + part.rope_dim, part.rope_dim, part.kv_rank or 0)


A, P = f"{L}self_attn.", f"{B}attention."
COMMON = (
    linear(f"{A}q_a_proj", f"{P}q_a"), linear(f"{A}q_a_layernorm", f"{P}q_norm"), linear(f"{A}kv_a_layernorm", f"{P}kv_norm"),
    linear(f"{A}kv_b_proj", f"{P}kv_b"), linear(f"{A}o_proj", f"{P}o"), *ENDS, *GATED, *PRE_NORMS,
)  # fmt: skip
HALVES = (
    *COMMON,
    *(linear(f"{A}{a}", f"{P}{b}") for a, b in (("q_proj", "q"), ("q_b_proj", "q_b"), ("kv_a_proj_with_mqa", "kv_a"))),
)
PAIRS = (
    *COMMON, linear(f"{A}q_proj", f"{P}q", _queries), linear(f"{A}q_b_proj", f"{P}q_b", _queries),
    linear(f"{A}kv_a_proj_with_mqa", f"{P}kv_a", _latents),
)  # fmt: skip
SIZES = (*SHAPE, HIDDEN, act(), RMS_EPS)


def _dense_read(config: Data, data: Data) -> None:
    """Only the dense form: no layer has experts."""
    if (
        config.get("first_k_dense_replace", 0) < config["num_hidden_layers"]
        and config.get("n_routed_experts") is not None
    ):
        raise ConfigError(
            "config.json describes layers with routed experts; slm reads the dense form of this model type only."
        )


def _dense_write(model: Model, data: Data, config: Data) -> None:
    config["first_k_dense_replace"] = model.layers


DENSE = Special(_dense_read, _dense_write)
YOUTU = Family(
    "youtu", "YoutuForCausalLM", PARTS,
    (*SIZES, *mla_items(q_rank=1536, v_dim=128), tied(True), Fixed("rope_interleave", True)), PAIRS,
)  # fmt: skip
DEEPSEEK3 = Family(
    "deepseek_v3", "DeepseekV3ForCausalLM", PARTS,
    (*SIZES, *mla_items(q_rank=1536, v_dim=128), tied(), Fixed("rope_interleave", True), DENSE), PAIRS,
)  # fmt: skip
DEEPSEEK2 = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    PARTS,
    (*SIZES, *mla_items(q_rank=1536, v_dim=128), tied(), MLP_BIAS, DENSE, Requires(heads_divide)),
    PAIRS,
)


def _scales_read(config: Data, data: Data) -> None:
    layers, dim = data["layers"], data["dim"]
    depth, base = config.get("scale_depth", 1.4), config.get("dim_model_base", 256)
    data["embedding"]["scale"] = config.get("scale_emb", 12) or 1
    data["residual"] = {"name": "pre", "depth_scale": layers**0.5 if depth is None else depth}
    data["embedding"]["logit_divisor"] = 1.0 if base is None else dim / base


def _scales_write(model: Model, data: Data, config: Data) -> None:
    config["scale_emb"] = data["embedding"]["scale"]
    config["scale_depth"] = data["residual"]["depth_scale"]
    config["dim_model_base"] = round(
        data["dim"] / data["embedding"]["logit_divisor"]
    )  # the class takes whole numbers only


MINICPM3 = Family(
    "minicpm3", "MiniCPM3ForCausalLM", PARTS,
    (*with_defaults((*SIZES, *mla_items(q_rank=768, v_dim=lambda c: c["hidden_size"] // c["num_attention_heads"])),
                    rms_norm_eps=1e-5, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32),
     tied(True), MLP_BIAS, Special(_scales_read, _scales_write), Requires(heads_divide)),
    HALVES,
)  # fmt: skip

FAMILIES = (YOUTU, DEEPSEEK3, DEEPSEEK2, MINICPM3)
