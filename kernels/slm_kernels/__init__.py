"""slm_kernels: training ops for small language models, usable on their own. Imports nothing from slm."""

from slm_kernels.linear_cross_entropy import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
