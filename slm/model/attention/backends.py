"""Computes softmax attention. Which implementation runs never changes the result beyond rounding.

``sdpa``    torch's scaled_dot_product_attention: fused kernels on a GPU, flash on a CPU. The default there.
``matmul``  scores in memory, softmax, values: does everything; on a CPU two to three times faster than SDPA at the short
            rows of small runs, and all operations are visible to a FLOP counter.

New backends (varlen, Flex, flash-attn) are further entries of `BACKENDS` with the same signature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.config.errors import ConfigError, suggest
from slm.model.sequence import Mask
from slm_kernels.matmul import product_dtype

MATMUL_MAX_KEYS = 512
"""Above this the scores no longer fit into a CPU's cache and SDPA is the faster one."""
MATMUL_BLOCK = 128
"""Queries at a time, where there are at least twice as many."""


@dataclass(frozen=True)
class Scores:
    """How a score comes about: softmax over cap tanh(q k scale / cap) - slope distance, within a window."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes_H: Tensor | None = None
    sinks_H: Tensor | None = None
    """Logits of a key that carries no value, one per head."""


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores, *, backend: str = "auto"
) -> Tensor:
    """Attention with G key/value heads shared by H query heads. Returns (B, H, T, V).

    Raises:
        ConfigError: the backend doesn't exist or can't do what ``scores`` asks for.
    """
    if backend == "auto":
        short = k_BGSK.shape[2] <= MATMUL_MAX_KEYS and q_BHTK.shape[2] > 1
        backend = "matmul" if _only_matmul(scores) or (q_BHTK.device.type == "cpu" and short) else "sdpa"
    if backend not in BACKENDS:
        raise ConfigError(f"Unknown attention backend {backend!r}. {suggest(backend, BACKENDS)}")
    return BACKENDS[backend](q_BHTK, k_BGSK, v_BGSV, mask, scores)


def _only_matmul(scores: Scores) -> str | None:
    """Which wish no fused implementation fulfils."""
    return "softcap" if scores.softcap else "sinks" if scores.sinks_H is not None else None


def _sdpa(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores) -> Tensor:
    if missing := _only_matmul(scores):
        raise ConfigError(f"impl.attention=sdpa can't do model.attention.{missing}. Use impl.attention=auto or matmul.")
    options = {"scale": scores.scale, "enable_gqa": q_BHTK.shape[1] != k_BGSK.shape[1]}
    if mask.plain_causal(scores.window) and scores.slopes_H is None:
        return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, is_causal=True, **options)  # type: ignore[arg-type]
    keys = k_BGSK.shape[2]
    if scores.slopes_H is None:
        bias = mask.allowed(keys, scores.window)
    else:
        bias = mask.bias(keys, scores.window, scores.slopes_H, q_BHTK)
    return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, attn_mask=bias, **options)  # type: ignore[arg-type]


def _matmul(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores) -> Tensor:
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    bias = mask.bias(S, scores.window, scores.slopes_H, q_BHTK.new_empty(0, dtype=product_dtype(q_BHTK)))
    if T != S or T < 2 * MATMUL_BLOCK:
        return _products(q_BHTK, k_BGSK, v_BGSV, bias, scores)
    # Queries block by block: no scores of keys that stand behind a whole block, or before its window.
    out = []
    for start in range(0, T, MATMUL_BLOCK):
        end = min(start + MATMUL_BLOCK, T)
        first = max(0, start - scores.window + 1) if scores.window is not None else 0
        rows, keys = slice(start, end), slice(first, end)
        part = None if bias is None else bias[..., rows, keys]
        out.append(_products(q_BHTK[:, :, rows], k_BGSK[:, :, keys], v_BGSV[:, :, keys], part, scores))
    return torch.cat(out, 2)


def _products(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, bias: Tensor | None, scores: Scores) -> Tensor:
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    # The query heads of a group are stacked along T: one product per key/value head, no repeated keys.
    q_BGRK = (q_BHTK * scores.scale).reshape(B, G, H // G * T, K)
    score_BHTS = (q_BGRK @ k_BGSK.mT).view(B, H, T, S)
    if scores.softcap is not None:
        score_BHTS = scores.softcap * (score_BHTS / scores.softcap).tanh()
    if bias is not None:  # added, not filled: an addition's gradient is free
        score_BHTS = score_BHTS + bias
    if scores.sinks_H is not None:
        sink_BHT1 = scores.sinks_H.to(score_BHTS.dtype)[None, :, None, None].expand(B, H, T, 1)
        score_BHTS = torch.cat((score_BHTS, sink_BHT1), -1)
    # Asked for in the scores' own dtype (the sums inside are fp32): autocast would convert to fp32 and back.
    weight_BHTS = score_BHTS.softmax(-1, dtype=score_BHTS.dtype)[..., :S]
    return (weight_BHTS.reshape(B, G, H // G * T, S) @ v_BGSV).view(B, H, T, v_BGSV.shape[-1])


Backend = Callable[[Tensor, Tensor, Tensor, Mask, Scores], Tensor]
BACKENDS: dict[str, Backend] = {"sdpa": _sdpa, "matmul": _matmul}
