"""LayerNorm with rotary positions: GPT-NeoX, GPT-J, CodeGen, Phi, StableLM, StarCoder2, Nemotron, Persimmon, Jais 2; and Phi-3."""

from __future__ import annotations

import math

from slm.export.families.base import Data, Family, Key, Map, Requires, Special, same, with_defaults
from slm.export.families.gpt2 import BARE, EPS, INNER, SIZES
from slm.export.families.layers import read_rope, rope, rope_parameters, windows
from slm.export.families.layouts import ROWS, Each, PerHead
from slm.export.families.llama import BOTH_BIASES, heads_divide
from slm.export.families.relatives import MLP_BIAS, head_rotation
from slm.export.families.shared import (
    ATTENTION,
    ENDS,
    GATED,
    HEADS,
    HIDDEN,
    LAYER_EPS,
    MULTI_HEAD,
    PRE_NORMS,
    QKV,
    SHAPE,
    WITHOUT_HEAD_DIM,
    B,
    L,
    act,
    kv_heads,
    linear,
    parts,
    tied,
)
from slm.model.config import Model

LAYER_PARTS = parts(norm={"name": "layernorm"}, ffn={"name": "plain", "bias": True})
PARALLEL = LAYER_PARTS | {"residual": {"name": "parallel", "own_norms": 1}}
BIASED = LAYER_PARTS | {"attention": {"name": "gqa", "qkv_bias": True, "out_bias": True}}
FUSED = tuple(f"{B}attention.{x}.{{leaf}}" for x in "qkv")
SIZES_GQA = (*SHAPE, *HEADS[:2], HIDDEN)


def per_head(model: Model) -> PerHead:
    """q, k, v of each head in turn."""
    return PerHead(getattr(model.attention, "heads", None) or 1)


def side_by_side(key: str, default: bool, norms: int) -> Special:
    """Whether attention and feed-forward stand side by side."""

    def read(config: Data, data: Data) -> None:
        data["residual"] = {"name": "parallel", "own_norms": norms} if config.get(key, default) else {"name": "pre"}

    def write(model: Model, data: Data, config: Data) -> None:
        config[key] = data["residual"]["name"] == "parallel"

    return Special(read, write)


N = "gpt_neox.layers.{i}."
NEOX = Family(
    "gpt_neox", "GPTNeoXForCausalLM", LAYER_PARTS,
    (*SHAPE, *MULTI_HEAD, HIDDEN, act(default="gelu"), LAYER_EPS, rope(fraction=0.25, partial=True), tied(),
     Key("attention_bias", "attention.qkv_bias attention.out_bias", True), side_by_side("use_parallel_residual", True, 2)),
    (same("gpt_neox.embed_in.weight", "embedding.weight"), same("lm_head.weight", "embedding.head"),
     linear("gpt_neox.final_layer_norm", "norm"), Map(f"{N}attention.query_key_value.{{leaf}}", FUSED, per_head),
     linear(f"{N}attention.dense", f"{B}attention.o"), linear(f"{N}mlp.dense_h_to_4h", f"{B}ffn.up"),
     linear(f"{N}mlp.dense_4h_to_h", f"{B}ffn.down"), linear(f"{N}input_layernorm", f"{B}attention_norm"),
     linear(f"{N}post_attention_layernorm", f"{B}ffn_norm")),
    (r".*rotary_emb\.inv_freq", r".*attention\.(bias|masked_bias)"), renames=((r"^embed_out\.weight$", "lm_head.weight"),),
)  # fmt: skip
PERSIMMON = Family(
    "persimmon", "PersimmonForCausalLM", BIASED,
    (*SHAPE, *MULTI_HEAD, HIDDEN, act(default="relu2"), LAYER_EPS, rope(fraction=0.5, partial=True), tied(),
     Key("qk_layernorm", "attention.qk_norm", True, lambda on: "head" if on else "none", lambda kind: kind == "head")),
    (*ENDS[:3], linear("model.final_layernorm", "norm"), Map(f"{L}self_attn.query_key_value.{{leaf}}", FUSED, per_head),
     linear(f"{L}self_attn.dense", f"{B}attention.o"), linear(f"{L}self_attn.q_layernorm", f"{B}attention.q_norm"),
     linear(f"{L}self_attn.k_layernorm", f"{B}attention.k_norm"), linear(f"{L}mlp.dense_h_to_4h", f"{B}ffn.up"),
     linear(f"{L}mlp.dense_4h_to_h", f"{B}ffn.down"), *PRE_NORMS),
)  # fmt: skip
PHI = Family(
    "phi", "PhiForCausalLM", PARALLEL | {"attention": BIASED["attention"], "embedding": {"name": "untied", "head_bias": True}},
    (*SIZES_GQA, act(default="gelu_new"), LAYER_EPS, rope(fraction=0.5, partial=True), tied(),
     Key("qk_layernorm", "attention.qk_norm", False, lambda on: "head" if on else "none", lambda kind: kind == "head")),
    (*ENDS[:3], linear("model.final_layernorm", "norm"), *QKV, linear(f"{L}self_attn.dense", f"{B}attention.o"),
     linear(f"{L}self_attn.q_layernorm", f"{B}attention.q_norm"), linear(f"{L}self_attn.k_layernorm", f"{B}attention.k_norm"),
     linear(f"{L}mlp.fc1", f"{B}ffn.up"), linear(f"{L}mlp.fc2", f"{B}ffn.down"), PRE_NORMS[0]),
)  # fmt: skip


def _original_read(config: Data, data: Data) -> None:
    """The class's own key for the length that was trained wins over the one among the rotary parameters."""
    if data["position"]["scaling"] is not None:
        own = {"original_max_position_embeddings": config.get("original_max_position_embeddings", 4096)}
        data["position"] = read_rope(rope_parameters(config) | own, data["context"])


def _original_write(model: Model, data: Data, config: Data) -> None:
    """This class takes the length that was trained from a key of its own."""
    scaling = data["position"]["scaling"] or {}
    config["original_max_position_embeddings"] = scaling.get("original", model.context)


PHI3 = Family(
    "phi3", "Phi3ForCausalLM", parts(),
    (*with_defaults(WITHOUT_HEAD_DIM, rms_norm_eps=1e-5), rope(partial=True, kinds=("longrope",)), tied(), windows(per_layer=False), Special(_original_read, _original_write)),
    (*ENDS, Map(f"{L}self_attn.qkv_proj.weight", tuple(f"{B}attention.{x}.weight" for x in "qkv")),
     linear(f"{L}self_attn.o_proj", f"{B}attention.o"), Map(f"{L}mlp.gate_up_proj.weight", (f"{B}ffn.gate.weight", f"{B}ffn.up.weight")),
     linear(f"{L}mlp.down_proj", f"{B}ffn.down"), *PRE_NORMS),
)  # fmt: skip


def _rotary_dim_read(config: Data, data: Data) -> None:
    width = config["n_embd"] // config["n_head"]
    rotated = config.get("rotary_dim", 64) or width
    share = rotated / width
    if int(share * width) < rotated:  # 58 / 100 * 100 is a little less than 58
        share = math.nextafter(share, 1.0)
    data["position"] = {"name": "rope", "fraction": share}


def _rotary_dim_write(model: Model, data: Data, config: Data) -> None:
    config["rotary_dim"] = int(data["position"]["fraction"] * model.attention.rotary_dim)


J = "transformer.h.{i}."
GPTJ = Family(
    "gptj", "GPTJForCausalLM", PARALLEL | {"embedding": {"name": "untied", "head_bias": True}},
    (*SIZES, Key("n_head", "attention.heads attention.kv_heads"), INNER, act("activation_function", "gelu_new"), EPS, tied(),
     Special(_rotary_dim_read, _rotary_dim_write)),
    (same("transformer.wte.weight", "embedding.weight"), *ENDS[1:3], linear("transformer.ln_f", "norm"),
     linear(f"{J}ln_1", f"{B}attention_norm"),
     *(linear(f"{J}attn.{x}_proj", f"{B}attention.{x}", head_rotation) for x in "qk"), linear(f"{J}attn.v_proj", f"{B}attention.v"),
     linear(f"{J}attn.out_proj", f"{B}attention.o"), linear(f"{J}mlp.fc_in", f"{B}ffn.up"), linear(f"{J}mlp.fc_out", f"{B}ffn.down")),
    (r".*\.attn\.(bias|masked_bias)",), renames=BARE,
)  # fmt: skip
SHARDS = 4
"""CodeGen's fused projection holds four slices, of the cores it was trained on, each with queries, values, keys."""


def _shards(model: Model) -> Each:
    turned = head_rotation(model)
    return Each(PerHead(SHARDS), (turned, ROWS, turned))


def _heads_by_shards(model: Model) -> str | None:
    heads = getattr(model.attention, "heads", None) or 0
    return f"heads={heads} is no multiple of {SHARDS}, which the class insists on" if heads % SHARDS else None


CODEGEN = Family(
    "codegen", "CodeGenForCausalLM", PARALLEL | {"embedding": {"name": "untied", "head_bias": True}}, (*GPTJ.items, Requires(_heads_by_shards)),
    (*(m for m in GPTJ.maps if m.ours[0] not in [f"{B}attention.{x}.{{leaf}}" for x in "qkvo"]),
     Map(f"{J}attn.qkv_proj.weight", tuple(f"{B}attention.{x}.weight" for x in "qvk"), _shards),
     linear(f"{J}attn.out_proj", f"{B}attention.o")),
    (r".*\.attn\.causal_mask",), renames=BARE,
)  # fmt: skip


def _head_norms_read(config: Data, data: Data) -> None:
    if config.get("qk_layernorm", False):
        kind = {"name": "layernorm", "bias": False, "eps": config.get("layer_norm_eps", 1e-5)}
        data["attention"] |= {"qk_norm": "each", "qk_norm_kind": kind}


def _head_norms_write(model: Model, data: Data, config: Data) -> None:
    config["qk_layernorm"] = data["attention"]["qk_norm"] == "each"


STABLELM = Family(
    "stablelm", "StableLmForCausalLM", parts(norm={"name": "layernorm"}),
    (*SIZES_GQA, act(), LAYER_EPS, rope(fraction=0.25, partial=True), tied(), Key("use_qkv_bias", "attention.qkv_bias", False),
     side_by_side("use_parallel_residual", False, 1), Special(_head_norms_read, _head_norms_write)),
    (*ENDS, *ATTENTION, *GATED, *PRE_NORMS,
     *(same(f"{L}self_attn.{x}_layernorm.norms.{{h}}.weight", f"{B}attention.{x}_norm.weight") for x in "qk")),
)  # fmt: skip
STARCODER2 = Family(
    "starcoder2", "Starcoder2ForCausalLM", LAYER_PARTS,
    (*with_defaults(SIZES_GQA, num_key_value_heads=kv_heads(2)), act(default="gelu_pytorch_tanh"), Key("norm_epsilon", "norm.eps", 1e-5), rope(), tied(True),
     Key("use_bias", "attention.qkv_bias attention.out_bias ffn.bias", True), windows(per_layer=False)),
    (*ENDS, *ATTENTION, *PRE_NORMS, linear(f"{L}mlp.c_fc", f"{B}ffn.up"), linear(f"{L}mlp.c_proj", f"{B}ffn.down")),
)  # fmt: skip
NEMOTRON = Family(
    "nemotron", "NemotronForCausalLM", parts(norm={"name": "layernorm", "gain": "one_plus"}, ffn={"name": "plain"}),
    (*SHAPE, *HEADS, HIDDEN, act(default="relu2"), Key("norm_eps", "norm.eps", 1e-5), rope(fraction=0.5, partial=True), tied(),
     BOTH_BIASES, MLP_BIAS),
    (*ENDS, *ATTENTION, *GATED, *PRE_NORMS),
)  # fmt: skip
JAIS2 = Family(
    "jais2", "Jais2ForCausalLM", LAYER_PARTS,
    (*SHAPE, *HEADS, HIDDEN, act(default="relu2"), LAYER_EPS, rope(), tied(),
     Key("attention_bias", "attention.qkv_bias attention.out_bias", True), Key("mlp_bias", "ffn.bias", True), Requires(heads_divide)),
    (*ENDS, *ATTENTION, *GATED, *PRE_NORMS),
)  # fmt: skip

FAMILIES = (NEOX, PHI, PHI3, GPTJ, CODEGEN, STABLELM, STARCODER2, NEMOTRON, PERSIMMON, JAIS2)
