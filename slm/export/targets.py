"""Which Hugging Face class, if any, computes exactly what a model computes.

The table is closed: a model goes to a target only if every part of it is listed there. Anything else is
refused with the part that doesn't fit, because the normal failure of exporters is not a crash but a model
that loads and silently computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slm.model.attention.softmax import GroupedQuery, MultiHead, _Options
from slm.model.auxiliary import NoAux, ZLoss
from slm.model.config import Model
from slm.model.embedding import Tied, Untied
from slm.model.ffn import SwiGLU
from slm.model.layout import Uniform
from slm.model.norm import RMSNormPart
from slm.model.position.rope import Rope
from slm.model.residual import PreNorm


@dataclass(frozen=True)
class Target:
    """A Hugging Face class and the config that makes it compute the model."""

    architecture: str
    model_type: str
    fits: Callable[[Model], str | None]
    """None if the class can express the model, else why not."""
    config: Callable[[Model], dict[str, Any]]
    renames: tuple[tuple[str, str], ...]
    """(our name, theirs), replaced in order within a tensor's name."""

    def tensor_name(self, name: str) -> str:
        """Our parameter name as theirs."""
        if name == "norm.weight":  # the final norm: too short a name to replace within others
            return "model.norm.weight"
        for ours, theirs in self.renames:
            name = name.replace(ours, theirs)
        return name


def choose(model: Model) -> tuple[Target | None, dict[str, str]]:
    """The first target that fits, and for every target that doesn't, why."""
    reasons: dict[str, str] = {}
    for target in TARGETS:
        reason = target.fits(model)
        if reason is None:
            return target, reasons
        reasons[target.architecture] = reason
    return None, reasons


def _llama_shaped(model: Model) -> str | None:
    """Why a model is no pre-norm RMSNorm, rotary, SwiGLU decoder; None if it is one."""
    allowed = {
        "attention": (GroupedQuery, MultiHead),
        "ffn": (SwiGLU,),
        "norm": (RMSNormPart,),
        "position": (Rope,),
        "residual": (PreNorm,),
        "embedding": (Tied, Untied),
        "layout": (Uniform,),
        "aux": (NoAux, ZLoss),  # these two only change the training loss
    }
    for slot, classes in allowed.items():
        part = getattr(model, slot)
        if type(part) not in classes:
            names = " or ".join(c.part_name for c in classes)
            return f"model.{slot} is {part.part_name!r}; the class computes {names}"
    return None


def _fits_llama(model: Model) -> str | None:
    reason = _llama_shaped(model)
    if reason is not None:
        return reason
    attention = model.attention
    assert isinstance(attention, _Options)
    if attention.qk_norm != "none":
        return "model.attention.qk_norm is on; the class has no norms on queries and keys"
    if model.dim % (attention.heads or 1):
        return f"model.dim={model.dim} is no multiple of heads={attention.heads}, which the class insists on"
    return None


def _fits_qwen3(model: Model) -> str | None:
    reason = _llama_shaped(model)
    if reason is None and model.attention.qk_norm == "none":  # type: ignore[attr-defined]
        reason = "model.attention.qk_norm is off; the class always normalises queries and keys"
    return reason


def _config(model: Model) -> dict[str, Any]:
    """The fields that Llama and Qwen3 share."""
    attention, position, norm = model.attention, model.position, model.norm
    assert isinstance(attention, _Options)
    assert isinstance(position, Rope)
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.context,
        "rms_norm_eps": norm.eps,  # type: ignore[attr-defined]
        # transformers 5 reads rope_parameters; older readers (and mlx-lm, vLLM on transformers 4) the plain key.
        "rope_theta": position.base,
        "rope_parameters": {"rope_type": "default", "rope_theta": position.base},
        "tie_word_embeddings": isinstance(model.embedding, Tied),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


_RENAMES = (
    ("blocks.", "model.layers."),
    ("attention.q_norm.", "self_attn.q_norm."),
    ("attention.k_norm.", "self_attn.k_norm."),
    ("attention.q.", "self_attn.q_proj."),
    ("attention.k.", "self_attn.k_proj."),
    ("attention.v.", "self_attn.v_proj."),
    ("attention.o.", "self_attn.o_proj."),
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("ffn.gate.", "mlp.gate_proj."),
    ("ffn.up.", "mlp.up_proj."),
    ("ffn.down.", "mlp.down_proj."),
    ("embedding.weight", "model.embed_tokens.weight"),
    ("embedding.head", "lm_head.weight"),
)


TARGETS = (
    Target("LlamaForCausalLM", "llama", _fits_llama, lambda m: {**_config(m), "mlp_bias": False}, _RENAMES),
    Target("Qwen3ForCausalLM", "qwen3", _fits_qwen3, lambda m: {**_config(m), "use_sliding_window": False}, _RENAMES),
)
