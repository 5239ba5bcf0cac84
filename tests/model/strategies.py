"""Hypothesis draws whole models: a part with options in every slot, freely combined."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NORMS = st.sampled_from(
    [
        {"name": "rmsnorm"}, {"name": "rmsnorm", "gain": "one_plus"}, {"name": "rmsnorm", "gain": "none"}, {"name": "layernorm"},
        {"name": "layernorm", "bias": False}, {"name": "layernorm", "gain": "none", "bias": False}, {"name": "dyt"},
    ]
)  # fmt: skip


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def part(name: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"name": st.just(name), **fields})


BOOL = st.booleans()
SOFTMAX = {
    "head_dim": st.sampled_from([None, 6, 7, 8]), "window": optional(st.integers(1, 20)), "qkv_bias": BOOL, "out_bias": BOOL,
    "qk_norm": st.sampled_from(["none", "head", "each", "full"]), "qk_norm_kind": optional(NORMS), "qk_norm_after_position": BOOL,
    "clip_qkv": optional(st.just(1.0)), "softcap": optional(st.just(3.0)), "gate": st.sampled_from(["none", "head", "element"]),
    "sinks": BOOL, "value_mix": st.sampled_from([None, "first", "embedding"]), "log_n": optional(st.just(4)),
}  # fmt: skip
ATTENTION = st.one_of(
    part("gqa", heads=st.sampled_from([2, 4]), kv_heads=st.sampled_from([1, 2]), **SOFTMAX),
    part("mha", heads=st.sampled_from([2, 3, 4]), **SOFTMAX),
    part("mqa", heads=st.sampled_from([2, 4]), **SOFTMAX),
    part("mla", heads=st.sampled_from([1, 3]), q_rank=st.sampled_from([0, 5]), kv_rank=st.just(6), nope_dim=st.sampled_from([0, 5]),
         rope_dim=st.sampled_from([4, 6]), v_dim=st.just(7), window=optional(st.just(5)), softcap=optional(st.just(3.0)),
         qkv_bias=BOOL, out_bias=BOOL, latent_norm=optional(NORMS)),
    part("differential", heads=st.sampled_from([2, 4]), kv_heads=st.sampled_from([None, 2]), window=optional(st.just(5)), qkv_bias=BOOL,
         out_bias=BOOL, pair_norm=NORMS),
    part("rglru", width=st.sampled_from([None, 24]), heads=st.sampled_from([1, 4]), kernel=st.sampled_from([2, 4])),
)  # fmt: skip
FFN = st.one_of(
    part("gated", hidden=st.sampled_from([None, 20]), bias=BOOL, activation=st.sampled_from(["silu", "tanh"])),
    part("plain", hidden=st.sampled_from([None, 20]), bias=BOOL, activation=st.sampled_from(["relu2", "gelu"])),
    part("series", hidden=st.just(12), terms=st.integers(1, 3), gated=BOOL, bias=BOOL),
    part("moe", hidden=st.sampled_from([None, 8]), experts=st.sampled_from([2, 4]), top_k=st.sampled_from([1, 2, 3]), normalise=BOOL,
         balance=st.sampled_from([0.0, 0.1])),
    st.sampled_from(["swiglu", "geglu", "reglu", "relu2", "relu", "gelu"]),
)  # fmt: skip
SCALING = st.sampled_from(
    [
        None, {"name": "linear", "factor": 2.0}, {"name": "yarn", "factor": 2.0, "original": 8}, {"name": "llama3", "factor": 4.0, "original": 8},
        {"name": "dynamic", "factor": 2.0, "original": 12}, {"name": "longrope", "short": [1.0, 2.0, 3.0], "long": [1.0, 4.0, 9.0], "original": 12},
    ]
)  # fmt: skip
POSITION = st.one_of(
    part("rope", fraction=st.sampled_from([1.0, 0.5, 0.3]), scaling=SCALING),
    part("learned", offset=st.sampled_from([0, 2])), st.just("alibi"), st.just("none"),
)  # fmt: skip
RESIDUAL = st.one_of(
    *(part(name, branch_scale=st.sampled_from([1.0, 0.5]), depth_scale=optional(st.just(1.4)), lambdas=BOOL, shortcut_rank=optional(st.just(3)))
      for name in ("pre", "post", "sandwich", "reordered")),
    part("parallel", own_norms=st.sampled_from([1, 2]), lambdas=BOOL, branch_scale=st.sampled_from([1.0, 0.5]), shortcut_rank=optional(st.just(3))),
)  # fmt: skip
EMBEDDING = st.sampled_from(["tied", "untied"]).flatmap(
    lambda name: part(name, scale=st.sampled_from([1.0, "sqrt_dim"]), norm=BOOL, rank=optional(st.just(8)), head_bias=BOOL, logit_divisor=st.sampled_from([1.0, 3.0]),
                      softcap=optional(st.just(5.0)), pad_to=st.sampled_from([1, 16]))
)  # fmt: skip
SHARING = {"repeat": st.sampled_from([1, 2]), "order": st.sampled_from(["block", "cycle"]), "share_ffn": BOOL}
LAYOUT = st.one_of(
    part("uniform", **SHARING),
    part("pattern", pattern=st.sampled_from(["full,nope", "rglru,full", "mla,mha", "near*2,full", "full,narrow", "full,shifted"]), kinds=st.just({}), **SHARING),
    part("scaling", multiple=st.just(8), **SHARING),
)  # fmt: skip
CONV = st.one_of(
    st.just("none"),
    part(
        "canon",
        points=st.sampled_from(["AC", "ABCD", "B", "D"]),
        kernel=st.sampled_from([2, 4, 7]),
        bias=BOOL,
        residual=BOOL,
    ),
)
AUX = st.sampled_from(["none", "z_loss", {"name": "mtp", "depths": 1}, {"name": "mtp", "depths": 2}])
KINDS = {
    "near": {"attention": {"window": 3}},
    "narrow": {"ffn": {"hidden": 8}},
    "shifted": {"position": {"name": "learned", "offset": 5}},
}
SCHEME = st.sampled_from(
    ["standard", {"name": "mup", "base_dim": 12}, {"name": "completep", "base_dim": 12, "base_layers": 1}]
)
INIT = st.sampled_from(
    [
        {"name": "normal", "sigma": 0.1, "scale_residual": False},
        {"name": "olmo2", "sigma": 0.1},
        "fan_in",
        "small",
        "openelm",
        "inv_sqrt_dim",
        "mitchell",
        "dclm",
    ]
)


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Plain data of a `Model`; some make no sense."""
    layout = draw(LAYOUT)
    if layout["name"] == "pattern":
        layout["kinds"] = {k: v for k, v in KINDS.items() if k in layout["pattern"]}
    return {
        "dim": 24, "layers": draw(st.integers(1, 3)), "vocab": 30, "context": 12, "attention": draw(ATTENTION), "ffn": draw(FFN),
        "norm": draw(NORMS), "position": draw(POSITION), "residual": draw(RESIDUAL), "embedding": draw(EMBEDDING), "layout": layout,
        "conv": draw(CONV), "aux": draw(AUX), "parametrization": draw(SCHEME), "init": draw(INIT),
    }  # fmt: skip
