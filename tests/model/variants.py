"""One small model per part and per option: what every test of "all variants" runs over.

Each entry changes `BASE`. ``test_table.py`` fails when a part is registered that no entry uses, or has an option that none
changes.
"""

from __future__ import annotations

from typing import Any

import torch

from slm.model.config import Model
from slm.model.decoder import Decoder

BASE: dict[str, Any] = {
    "dim": 32, "layers": 2, "vocab": 40, "context": 24, "init": {"name": "normal", "sigma": 0.2, "scale_residual": False},
    "attention": {"name": "gqa", "heads": 4, "kv_heads": 2}, "ffn": {"name": "swiglu", "hidden": 48},
}  # fmt: skip
GQA = {"name": "gqa", "heads": 4, "kv_heads": 2}


def gqa(**options: Any) -> dict[str, Any]:
    return {"attention": GQA | options}


def rope(**options: Any) -> dict[str, Any]:
    return {"position": {"name": "rope", **options}}


def scaled(name: str, **options: Any) -> dict[str, Any]:
    return rope(scaling={"name": name, **options})


def pattern(text: str, **kinds: Any) -> dict[str, Any]:
    return {"layout": {"name": "pattern", "pattern": text, "kinds": kinds}, "layers": 4}


VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"attention": {"name": "mha", "heads": 4}},
    "mqa": {"attention": {"name": "mqa", "heads": 4}},
    "free head_dim": gqa(head_dim=12),
    "window": gqa(window=5),
    "window longer than the row": gqa(window=60),
    "qk_norm head": gqa(qk_norm="head"),
    "qk_norm head layernorm": gqa(qk_norm="head", qk_norm_kind="layernorm"),
    "qk_norm each": gqa(qk_norm="each", qk_norm_kind={"name": "layernorm", "bias": False}),
    "qk_norm full": gqa(qk_norm="full"),
    "qk_norm after position": gqa(qk_norm="head", qk_norm_after_position=True),
    "clip_qkv": gqa(clip_qkv=0.5),
    "softcap": gqa(softcap=2.0),
    "scale": gqa(scale=0.5),
    "gate head": gqa(gate="head"),
    "gate element": gqa(gate="element"),
    "sinks": gqa(sinks=True),
    "value_mix first": gqa(value_mix="first"),
    "value_mix embedding": gqa(value_mix="embedding"),
    "log_n": gqa(log_n=6),
    "attention biases": gqa(qkv_bias=True, out_bias=True),
    "mla": {"attention": {"name": "mla", "heads": 4, "nope_dim": 6, "rope_dim": 4, "v_dim": 10}},
    "mla full rank": {"attention": {"name": "mla", "heads": 4, "nope_dim": 6, "rope_dim": 4, "v_dim": 10, "q_rank": 0, "qkv_bias": True, "out_bias": True, "window": 7, "softcap": 3.0}},
    "mla of its own norm": {"attention": {"name": "mla", "heads": 4, "nope_dim": 0, "rope_dim": 4, "v_dim": 8, "scale": 0.4, "latent_norm": "layernorm"}},
    "differential": {"attention": {"name": "differential", "heads": 4}},
    "differential grouped": {"attention": {"name": "differential", "heads": 8, "kv_heads": 4, "window": 6, "qkv_bias": True, "out_bias": True}},
    "differential of its own norm": {"attention": {"name": "differential", "heads": 4, "head_dim": 6, "lambda_std": 0.5, "pair_norm": {"name": "layernorm"}}},
    "rglru": {"attention": "rglru", "position": "none"},
    "rglru heads": {"attention": {"name": "rglru", "width": 48, "heads": 4, "kernel": 3}, "position": "none"},
    "rope fraction": rope(fraction=0.5),
    "rope base": rope(base=100.0),
    "rope linear": scaled("linear", factor=3.0),
    "rope dynamic": scaled("dynamic", factor=2.0, original=24),
    "rope llama3": scaled("llama3", factor=4.0, original=16),
    "rope yarn": scaled("yarn", factor=4.0, original=8),
    "rope llama3 borders": scaled("llama3", factor=4.0, original=16, low=0.5, high=2.0),
    "rope yarn borders": scaled("yarn", factor=4.0, original=16, beta_fast=4.0, beta_slow=0.5, truncate=False, attention_factor=0.8),
    "rope longrope": scaled("longrope", short=(1.0, 1.5, 2.0, 2.5), long=(2.0, 3.0, 4.0, 5.0), original=24, attention_factor=1.2),
    "learned": {"position": "learned"},
    "learned offset": {"position": {"name": "learned", "offset": 2}},
    "alibi": {"position": "alibi"},
    "alibi six heads": {"position": {"name": "alibi", "largest": 4.0}, "attention": {"name": "mha", "heads": 6, "head_dim": 8}},
    "no position": {"position": "none"},
    **{name: {"ffn": {"name": name, "hidden": 48}} for name in ("geglu", "reglu", "relu2", "relu", "gelu")},
    "gated bias": {"ffn": {"name": "gated", "hidden": 48, "bias": True, "activation": "tanh"}},
    "plain bias": {"ffn": {"name": "plain", "hidden": 48, "bias": True, "activation": "mish"}},
    "series": {"ffn": {"name": "series", "hidden": 48, "terms": 3, "bias": True}},
    "series gated": {"ffn": {"name": "series", "hidden": 48, "gated": True, "activation": "silu"}},
    "moe": {"ffn": {"name": "moe", "hidden": 16, "experts": 4, "top_k": 2}},
    "moe one expert a token": {"ffn": {"name": "moe", "hidden": 16, "experts": 3, "top_k": 1, "normalise": False, "balance": 0.0, "activation": "gelu"}},
    "rmsnorm one_plus": {"norm": {"name": "rmsnorm", "gain": "one_plus"}},
    "rmsnorm weightless": {"norm": {"name": "rmsnorm", "gain": "none"}},
    "layernorm": {"norm": "layernorm"},
    "layernorm gain only": {"norm": {"name": "layernorm", "bias": False}},
    "layernorm one_plus": {"norm": {"name": "layernorm", "gain": "one_plus"}},
    "layernorm non-parametric": {"norm": {"name": "layernorm", "gain": "none", "bias": False}},
    "coarse rmsnorm": {"norm": {"name": "rmsnorm", "eps": 0.1}},
    "coarse layernorm": {"norm": {"name": "layernorm", "eps": 0.1}},
    "dyt": {"norm": "dyt"},
    "dyt alpha": {"norm": {"name": "dyt", "alpha": 0.9}},
    **{name: {"residual": name} for name in ("post", "sandwich", "reordered", "parallel")},
    "parallel two norms": {"residual": {"name": "parallel", "own_norms": 2}},
    "parallel with all": {"residual": {"name": "parallel", "branch_scale": 0.7, "lambdas": True, "shortcut_rank": 4}},
    "branch_scale": {"residual": {"name": "pre", "branch_scale": 0.5}},
    "depth_scale": {"residual": {"name": "pre", "depth_scale": 1.4}},
    "lambdas": {"residual": {"name": "sandwich", "lambdas": True}},
    "augmented shortcut": {"residual": {"name": "pre", "shortcut_rank": 6}},
    "canon": {"conv": "canon"},
    "canon AC biased": {"conv": {"name": "canon", "points": "AC", "kernel": 3, "bias": True, "residual": False}},
    "untied": {"embedding": "untied"},
    "embedding scaled": {"embedding": {"name": "tied", "scale": "sqrt_dim", "logit_divisor": 3.0, "softcap": 4.0}},
    "embedding norm and bias": {"embedding": {"name": "untied", "scale": 2.0, "norm": True, "head_bias": True}},
    "factorised": {"embedding": {"name": "tied", "rank": 12}},
    "padded": {"embedding": {"name": "untied", "pad_to": 16, "head_bias": True}},
    "repeat": {"layout": "repeat"},
    "cycle": {"layout": {"name": "uniform", "repeat": 2, "order": "cycle"}},
    "shared_ffn": {"layout": "shared_ffn"},
    "shared_ffn with canon": {"layout": "shared_ffn", "conv": "canon"},
    "scaling": {"layout": {"name": "scaling", "multiple": 16}, "attention": GQA | {"heads": 8, "kv_heads": 4, "head_dim": 4}, "layers": 3},
    "scaling steeper": {"layout": {"name": "scaling", "multiple": 8, "alpha": (0.25, 1.5), "beta": (1.0, 2.0)}, "attention": GQA | {"head_dim": 8}, "layers": 3},
    "all shared": {"layout": {"name": "uniform", "repeat": 2, "order": "cycle", "share_ffn": True}, "conv": "canon"},
    "pattern windows and bases": pattern("near*3,full", near={"attention": {"window": 4}, "position": {"base": 100.0}}),
    "pattern nope": pattern("full*3,nope"),
    "pattern of mixers": pattern("rglru*2,mla,differential"),
    "pattern of feed-forwards": pattern("full,wide", wide={"ffn": {"name": "relu2", "hidden": 20}, "attention": "mha"}),
    "mup": {"parametrization": {"name": "mup", "base_dim": 16, "base_head_dim": 4, "input_scale": 2.0, "output_scale": 3.0}},
    "completep": {"parametrization": {"name": "completep", "base_dim": 16, "base_layers": 1}},
    **{f"init {name}": {"init": name} for name in ("fan_in", "inv_sqrt_dim", "small", "openelm", "olmo2", "mitchell", "dclm")},
    "init fan_in gain": {"init": {"name": "fan_in", "gain": 1.3, "embedding": 0.1}},
    "init small residual": {"init": {"name": "small", "residual": 1.0}},
    "init normal hidden": {"init": {"name": "normal", "sigma": 0.2, "hidden": 0.1}},
    "init olmo2 sigma": {"init": {"name": "olmo2", "sigma": 0.1, "truncate": 2.0}},
    "z_loss": {"aux": {"name": "z_loss", "weight": 0.1}},
    "mtp": {"aux": {"name": "mtp", "depths": 2, "z_loss": 0.01}, "embedding": {"name": "tied", "scale": 2.0}},
    "mtp post": {"aux": {"name": "mtp", "weight": 0.5}, "residual": "post", "conv": "canon"},
}  # fmt: skip
"""What each variant changes."""
FUSED = [name for name in VARIANTS if not any(word in name for word in ("softcap", "sinks", "mla full rank"))]
"""Those that torch's fused attention can compute too."""


def model_of(name: str, **changes: Any) -> Model:
    return Model(**BASE | VARIANTS[name] | changes)


def decoder_of(name: str, backend: str = "auto", **changes: Any) -> Decoder:
    """An evaluation-mode decoder with random gains, biases and scalars, so that nothing cancels."""
    decoder = Decoder(model_of(name, **changes)).init_weights(0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in decoder.parameters():
            if p.ndim < 2:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
    decoder.attention_backend = backend
    return decoder


def ids(rows: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(seed))
