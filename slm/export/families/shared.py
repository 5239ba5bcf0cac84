"""Items and maps that many families share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from slm.config.errors import ConfigError, suggest
from slm.export.families.base import Data, Item, Key, Map, Special, put, same
from slm.export.families.layouts import ROWS
from slm.model.config import Model

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
        raise ConfigError(f"config.json names the activation {name!r}, which slm doesn't have. {suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def act(key: str = "hidden_act", default: str = "silu") -> Key:
    """The feed-forward's activation."""
    return Key(key, "ffn.activation", default, activation, _THEIRS.__getitem__)


def tied(default: bool = False) -> Key:
    """Whether one matrix embeds and scores."""
    return Key("tie_word_embeddings", "embedding.name", default, lambda t: "tied" if t else "untied", lambda n: n == "tied")


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
MULTI_HEAD = (
    Key("num_attention_heads", "attention.heads attention.kv_heads"),
)
"""Classes without grouped queries or a head width of their own."""


def inverse_root(key: str, default: Any) -> Key:
    """A number s with scores scaled by 1 / sqrt(s)."""

    def encode(scale: float) -> float:
        found = round(scale**-2, 9)
        return int(found) if found == int(found) else found

    return Key(key, "attention.scale", default, lambda s: s**-0.5, encode)


# ---- rotary positions -------------------------------------------------------------------------------------

_ROPE_FIELDS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor", "original_max_position_embeddings": "original"},
    "llama3": {
        "factor": "factor", "original_max_position_embeddings": "original", "low_freq_factor": "low", "high_freq_factor": "high",
    },
    "yarn": {
        "factor": "factor", "original_max_position_embeddings": "original", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
        "truncate": "truncate", "attention_factor": "attention_factor",
    },
    "longrope": {
        "short_factor": "short", "long_factor": "long", "original_max_position_embeddings": "original",
        "attention_factor": "attention_factor",
    },
}  # fmt: skip
"""rope_type -> (their key -> our field)."""


def rope_parameters(config: Data) -> Data:
    """``rope_parameters`` of transformers 5, or the keys that stood for it before."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_type", found.pop("type", "default"))
    if config.get("rope_theta") is not None:
        found.setdefault("rope_theta", config["rope_theta"])
    older = {"partial_rotary_factor": "partial_rotary_factor", "rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
    for name, now in (older | {"original_max_position_embeddings": "original_max_position_embeddings"}).items():
        if config.get(name) is not None:
            found.setdefault(now, config[name])
    return found


def read_rope(parameters: Data, context: int, base: float = 10_000.0, fraction: float = 1.0) -> Data:
    """A ``rope`` part out of one set of rope parameters. Raises `ConfigError` for an unknown kind of scaling."""
    kind = parameters.get("rope_type", "default")
    part: Data = {
        "name": "rope",
        "base": float(parameters.get("rope_theta") or base),
        "fraction": parameters.get("partial_rotary_factor") or fraction,
        "scaling": None,
    }
    if kind == "default":
        return part
    if kind == "su":
        kind = "longrope"
    if kind not in _ROPE_FIELDS:
        raise ConfigError(f"config.json says rope_type={kind!r}, which slm doesn't have. {suggest(kind, _ROPE_FIELDS)}")
    fields = {ours: parameters[theirs] for theirs, ours in _ROPE_FIELDS[kind].items() if parameters.get(theirs) is not None}
    if "original_max_position_embeddings" in _ROPE_FIELDS[kind]:
        fields.setdefault("original", context)
    if kind == "yarn" and "attention_factor" not in fields and parameters.get("mscale") and parameters.get("mscale_all_dim"):
        fields["attention_factor"] = _mscale(parameters, "mscale") / _mscale(parameters, "mscale_all_dim")
    if kind == "longrope" and "attention_factor" not in fields:
        factor = parameters.get("factor") or context / fields["original"]
        fields["attention_factor"] = longrope_attention(factor, fields["original"])
    part["scaling"] = {"name": kind, **fields}
    return part


def _mscale(parameters: Data, name: str) -> float:
    factor = parameters["factor"]
    return 1.0 if factor <= 1 else 0.1 * float(parameters[name]) * math.log(factor) + 1.0


def longrope_attention(factor: float, original: int) -> float:
    """sqrt(1 + ln(factor) / ln(original)), the published factor on cos and sin."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def write_rope(part: Data) -> Data:
    """rope_parameters out of a ``rope`` part. Raises KeyError for another position encoding."""
    found: Data = {"rope_type": "default", "rope_theta": part["base"]}
    if part["fraction"] != 1.0:
        found["partial_rotary_factor"] = part["fraction"]
    scaling = part["scaling"]
    if scaling is not None:
        found["rope_type"] = scaling["name"]
        found |= {theirs: scaling[ours] for theirs, ours in _ROPE_FIELDS[scaling["name"]].items() if scaling[ours] is not None}
    return found


def rope(*, base: float = 10_000.0, fraction: float = 1.0, partial: bool = False) -> Special:
    """All of a model's rotary positions alike. ``partial``: whether the class honours partial rotation; most ignore the
    key, silently. ``base`` and ``fraction``: the class's defaults."""

    def read(config: Data, data: Data) -> None:
        part = read_rope(rope_parameters(config), data.get("context") or 0, base, fraction)
        if not partial:
            part["fraction"] = 1.0
        data["position"] = part

    def write(model: Model, data: Data, config: Data) -> None:
        config["rope_parameters"] = write_rope(data["position"])
        config["rope_theta"] = data["position"]["base"]  # older readers (mlx-lm, vLLM on transformers 4) know this key only
        if partial:
            config["partial_rotary_factor"] = data["position"]["fraction"]
            config["rope_parameters"]["partial_rotary_factor"] = data["position"]["fraction"]

    return Special(read, write)


# ---- layers of several kinds ------------------------------------------------------------------------------

SLIDING, FULL = "sliding_attention", "full_attention"


def pattern_of(kinds: list[str]) -> str:
    """The shortest pattern that gives these kinds when it is repeated: ``window*5,full``."""
    period = next(p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % p] for i in range(len(kinds))))
    runs: list[list[Any]] = []
    for kind in kinds[:period]:
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        else:
            runs.append([kind, 1])
    return ",".join(kind if count == 1 else f"{kind}*{count}" for kind, count in runs)


def set_layout(data: Data, kinds: list[str], changes: dict[str, Data]) -> None:
    """Give each layer its kind: ``changes`` of the slots per kind; one kind for all layers goes into the parts themselves."""
    if len(set(kinds)) == 1:
        for slot, fields in changes.get(kinds[0], {}).items():
            if isinstance(fields, str):
                data[slot] = fields
            else:
                data[slot] = {**(data[slot] if isinstance(data.get(slot), dict) else {"name": data.get(slot)}), **fields}
        return
    used = {kind: changes[kind] for kind in dict.fromkeys(kinds) if changes.get(kind)}
    data["layout"] = {"name": "pattern", "pattern": pattern_of(kinds), "kinds": used}


def windows(
    default_types: Callable[[Data], list[str] | None] = lambda c: None,
    *,
    switch: str | None = None,
    default_window: int | None = None,
    per_layer: bool = True,
) -> Special:
    """``layer_types`` and ``sliding_window``. ``switch``: a key that must be true for windows to count (Qwen2).
    ``default_types``: the class's own layer types where config.json lacks them; ``per_layer``: whether it has any."""

    def read(config: Data, data: Data) -> None:
        window = config.get("sliding_window", default_window)
        if window is None or (switch is not None and not config.get(switch, False)):
            return
        types = (config.get("layer_types") if per_layer else None) or default_types(config) or [SLIDING] * data["layers"]
        kinds = ["window" if t == SLIDING else "full" for t in types]
        set_layout(data, kinds, {"window": {"attention": {"window": window}}})

    def write(model: Model, data: Data, config: Data) -> None:
        found = [getattr(c.attention, "window", None) for c in model.contexts]
        sizes = {w for w in found if w is not None}
        if len(sizes) > 1:
            raise ValueError("layers have windows of several sizes")
        config["sliding_window"] = sizes.pop() if sizes else None
        if per_layer:
            config["layer_types"] = [FULL if w is None else SLIDING for w in found]
        if switch is not None:
            config[switch] = config["sliding_window"] is not None

    return Special(read, write)


def every(pattern: int) -> Callable[[Data], list[str]]:
    """Every ``pattern``-th layer sees everything, the others a window."""
    return lambda c: [SLIDING if (i + 1) % pattern else FULL for i in range(c["num_hidden_layers"])]


def rope_by_type(
    types_of: Callable[[Data], list[str]],
    published: Callable[[Data], tuple[Data, Data]],
    *,
    bases: tuple[float, float] = (1e4, 1e4),
) -> Special:
    """Windowed and full layers, each with rotary parameters of their own (Gemma 3, OLMo 3).

    ``types_of``: the class's layer types where config.json lacks them; ``published``: parameters of full and windowed layers
    out of a config.json that doesn't give them by type; ``bases``: their default bases.
    """

    def read(config: Data, data: Data) -> None:
        given, context = config.get("rope_parameters") or {}, data.get("context") or 0
        typed = FULL in given or SLIDING in given
        pair = (given.get(FULL) or {}, given.get(SLIDING) or {}) if typed else published(config)
        wide, near = (read_rope(p, context, base) | {"fraction": 1.0} for p, base in zip(pair, bases, strict=True))
        data["position"] = wide
        kinds = ["window" if t == SLIDING else "full" for t in config.get("layer_types") or types_of(config)]
        window = {"attention": {"window": config.get("sliding_window", 4096)}, "position": near}
        set_layout(data, kinds, {"window": window})

    def write(model: Model, data: Data, config: Data) -> None:
        config["layer_types"], config["sliding_window"], found = [], 4096, dict[str, Data]()
        for ctx in model.contexts:
            window = getattr(ctx.attention, "window", None)
            config["layer_types"].append(FULL if window is None else SLIDING)
            config["sliding_window"] = window or config["sliding_window"]
            found[config["layer_types"][-1]] = ctx.position.canonical().model_dump(mode="json")
        plain = {"rope_type": "default", "rope_theta": 1e4}
        config["rope_parameters"] = {t: write_rope(found[t]) if t in found else plain for t in (FULL, SLIDING)}

    return Special(read, write)


# ---- tensors ----------------------------------------------------------------------------------------------

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
