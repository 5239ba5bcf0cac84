"""Computes softmax attention. Which implementation runs never changes the result beyond rounding.

``sdpa``    torch's scaled_dot_product_attention: fused kernels on a GPU, flash on a CPU. The default there.
``matmul``  scores in memory, softmax, values: on a CPU two to three times faster than SDPA at the short rows
            of small runs, and all operations are visible to a FLOP counter.

New backends (varlen, Flex, flash-attn) are further entries of `BACKENDS` with the same signature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from slm.config.errors import ConfigError, suggest
from slm.model.sequence import Mask

MATMUL_MAX_KEYS = 512
"""Above this the scores no longer fit into a CPU's cache and SDPA is the faster one."""


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, *, scale: float, backend: str = "auto"
) -> Tensor:
    """softmax(q k^T scale) v with G key/value heads shared by H query heads. Returns (B, H, T, V)."""
    if backend == "auto":
        short = k_BGSK.shape[2] <= MATMUL_MAX_KEYS and q_BHTK.shape[2] > 1
        backend = "matmul" if q_BHTK.device.type == "cpu" and short else "sdpa"
    if backend not in BACKENDS:
        raise ConfigError(f"Unknown attention backend {backend!r}. {suggest(backend, BACKENDS)}")
    return BACKENDS[backend](q_BHTK, k_BGSK, v_BGSV, mask, scale)


def _sdpa(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scale: float) -> Tensor:
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if mask.plain_causal:
        return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, is_causal=True, scale=scale, enable_gqa=grouped)
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSV, attn_mask=mask.allowed, scale=scale, enable_gqa=grouped
    )


def _matmul(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scale: float) -> Tensor:
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    # The query heads of a group are stacked along T: one product per key/value head, no repeated keys.
    q_BGRK = (q_BHTK * scale).reshape(B, G, H // G * T, K)
    scores = (q_BGRK @ k_BGSK.mT).view(B, H, T, S)
    bias = mask.bias(scores.dtype)
    if bias is not None:  # added, not filled: an addition's gradient is free
        scores = scores + bias
    # Asked for in the scores' own dtype (the sums inside are fp32): autocast would convert to fp32 and back.
    weights = scores.softmax(-1, dtype=scores.dtype).view(B, G, H // G * T, S)
    return (weights @ v_BGSV).view(B, H, T, v_BGSV.shape[-1])


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Mask, float], Tensor]] = {"sdpa": _sdpa, "matmul": _matmul}
