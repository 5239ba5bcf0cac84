"""Items for positions and layers: rotary parameters in all their spellings, windows, and layers of several kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from slm.config.errors import ConfigError, suggest
from slm.export.families.base import Data, Special
from slm.model.config import Model

_ROPE_FIELDS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
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
    older = {
        "partial_rotary_factor": "partial_rotary_factor",
        "rotary_pct": "partial_rotary_factor",
        "rotary_emb_base": "rope_theta",
    }
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
    fields = {
        ours: parameters[theirs] for theirs, ours in _ROPE_FIELDS[kind].items() if parameters.get(theirs) is not None
    }
    if kind == "dynamic":
        fields["original"] = context  # the classes stretch from max_position_embeddings, whatever the parameters say
    elif kind != "linear":
        fields.setdefault("original", context)
    if (
        kind == "yarn"
        and "attention_factor" not in fields
        and parameters.get("mscale")
        and parameters.get("mscale_all_dim")
    ):
        fields["attention_factor"] = yarn_sharpness(parameters, "mscale") / yarn_sharpness(parameters, "mscale_all_dim")
    if kind == "longrope" and "attention_factor" not in fields:
        factor = parameters.get("factor") or context / fields["original"]
        fields["attention_factor"] = longrope_attention(factor, fields["original"])
    part["scaling"] = {"name": kind, **fields}
    return part


def yarn_sharpness(parameters: Data, name: str) -> float:
    """DeepSeek's form of YaRN's factor, ``m`` ln(factor) / 10 + 1 with m under ``name``."""
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
        found |= {
            theirs: scaling[ours] for theirs, ours in _ROPE_FIELDS[scaling["name"]].items() if scaling[ours] is not None
        }
    return found


def rope(
    *, base: float = 10_000.0, fraction: float = 1.0, partial: bool = False, default: Data | None = None,
    kinds: Iterable[str] = _ROPE_FIELDS,
) -> Special:  # fmt: skip
    """All of a model's rotary positions alike. ``partial``: whether the class honours partial rotation; most ignore the
    key, silently. ``base`` and ``fraction``: the class's defaults; ``default``: its parameters where config.json has none;
    ``kinds``: the kinds of scaling that it computes."""

    def read(config: Data, data: Data) -> None:
        none_given = not config.get("rope_parameters") and not config.get("rope_scaling")
        given = default if default is not None and none_given else rope_parameters(config)
        part = read_rope(given, data.get("context") or 0, base, fraction)
        if part["scaling"] is not None and part["scaling"]["name"] not in kinds:
            raise ConfigError(
                f"config.json says rope_type={part['scaling']['name']!r}, which its class doesn't compute."
            )
        if not partial:
            part["fraction"] = 1.0
        data["position"] = part

    def write(model: Model, data: Data, config: Data) -> None:
        used = [c.position for c in model.contexts if c.attention.positional and c.position.part_name != "none"]
        if not used:
            return  # classes whose layers may lack positions say so in another key
        part = used[0].canonical().model_dump(mode="json")
        config["rope_parameters"] = write_rope(part)
        config["rope_theta"] = part["base"]  # older readers (mlx-lm, vLLM on transformers 4) know this key only
        if partial:
            config["partial_rotary_factor"] = config["rope_parameters"]["partial_rotary_factor"] = part["fraction"]

    return Special(read, write)


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
                data[slot] = {
                    **(data[slot] if isinstance(data.get(slot), dict) else {"name": data.get(slot)}),
                    **fields,
                }
        return
    used = {kind: changes[kind] for kind in dict.fromkeys(kinds) if changes.get(kind)}
    data["layout"] = {"name": "pattern", "pattern": pattern_of(kinds), "kinds": used}


def write_window_types(model: Model, config: Data, *, unused: int | None) -> None:
    """``layer_types`` and ``sliding_window`` of a model's layers; ``unused``: the window where no layer has one."""
    found = [getattr(c.attention, "window", None) for c in model.contexts]
    config["sliding_window"] = max(
        (w for w in found if w is not None), default=unused
    )  # several: refused when read back
    config["layer_types"] = [FULL if w is None else SLIDING for w in found]


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
        types = (
            (config.get("layer_types") if per_layer else None) or default_types(config) or [SLIDING] * data["layers"]
        )
        kinds = ["window" if t == SLIDING else "full" for t in types]
        set_layout(data, kinds, {"window": {"attention": {"window": window}}})

    def write(model: Model, data: Data, config: Data) -> None:
        found = [getattr(c.attention, "window", None) for c in model.contexts]
        sizes = {w for w in found if w is not None}
        if len(sizes) > 1:
            raise ValueError("layers have windows of several sizes")
        unused = default_window if per_layer and switch is None else None  # some classes make a mask that no layer uses
        config["sliding_window"] = sizes.pop() if sizes else unused
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
