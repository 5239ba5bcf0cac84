"""slm_kernels: training ops for small language models, usable on their own. Imports nothing from slm."""

from slm_kernels.cross_entropy import cross_entropy_
from slm_kernels.dispatch import Unsupported, chosen, set_default, supported, use
from slm_kernels.gated import activation, activation_linear, geglu, relu2, swiglu
from slm_kernels.linear_cross_entropy import linear_cross_entropy
from slm_kernels.qk_norm_rope import qk_norm_rope
from slm_kernels.rms_norm import rms_norm

__all__ = [
    "Unsupported",
    "activation",
    "activation_linear",
    "chosen",
    "cross_entropy_",
    "geglu",
    "linear_cross_entropy",
    "qk_norm_rope",
    "relu2",
    "rms_norm",
    "set_default",
    "supported",
    "swiglu",
    "use",
]
