"""slm_kernels: training ops for small language models, usable on their own. Imports nothing from slm."""

from slm_kernels.attention import attention
from slm_kernels.cross_entropy import Head, cross_entropy_
from slm_kernels.dispatch import Unsupported, chosen, forget, fused, set_default, supported, unavailable, use
from slm_kernels.embedding import embedding
from slm_kernels.gated import activation, activation_linear, geglu, relu2, swiglu
from slm_kernels.linear_cross_entropy import linear_cross_entropy
from slm_kernels.linear_kl import linear_kl
from slm_kernels.linear_lse import linear_lse
from slm_kernels.newton_schulz import newton_schulz
from slm_kernels.qk_norm_rope import qk_norm_rope
from slm_kernels.rms_norm import rms_norm
from slm_kernels.short_conv import short_conv

__all__ = [
    "Head",
    "Unsupported",
    "activation",
    "activation_linear",
    "attention",
    "chosen",
    "cross_entropy_",
    "embedding",
    "forget",
    "fused",
    "geglu",
    "linear_cross_entropy",
    "linear_kl",
    "linear_lse",
    "newton_schulz",
    "qk_norm_rope",
    "relu2",
    "rms_norm",
    "set_default",
    "short_conv",
    "supported",
    "swiglu",
    "unavailable",
    "use",
]
