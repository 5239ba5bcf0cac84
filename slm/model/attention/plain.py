"""Softmax attention by matrix products: scores in memory, softmax, values. Does everything, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from slm.model.attention.scores import Scores
from slm.model.sequence import Mask
from slm_kernels.matmul import product_dtype

MATMUL_BLOCK = 128
"""Queries at a time, where there are at least twice as many."""


def matmul(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """Scores in memory, softmax, values. Returns (B, H, T, V)."""
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
