"""torch's scaled_dot_product_attention: fused kernels on a GPU, flash on a CPU.

Dense causal attention on a Hopper GPU asks cuDNN first, which is faster there than the FlashAttention 2 that torch would take. With a
mask in memory cuDNN is never asked: its gradient of masked queries has been wrong (pytorch issue 196678).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from slm.model.attention.scores import Request, Scores
from slm.model.sequence import Mask

DENSE = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def cannot(asked: Request) -> str:
    """What of a request this can't do."""
    return "it has no softcap" if asked.softcap else "it has no sinks" if asked.sinks else ""


@lru_cache
def hopper(device: torch.device) -> bool:
    """Whether it is a GPU of compute capability 9."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def sdpa(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """(B, H, T, V)."""
    options = {"scale": scores.scale, "enable_gqa": q_BHTK.shape[1] != k_BGSK.shape[1]}
    if mask.plain_causal(scores.window) and scores.slopes_H is None:
        order: AbstractContextManager[object] = nullcontext()
        if hopper(q_BHTK.device):
            order = sdpa_kernel(DENSE, set_priority=True)
        with order:
            return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, is_causal=True, **options)  # type: ignore[arg-type]
    keys = k_BGSK.shape[2]
    if scores.slopes_H is None:
        bias = mask.allowed(keys, scores.window)
    else:
        bias = mask.bias(keys, scores.window, scores.slopes_H, q_BHTK)
    if bias is None or q_BHTK.device.type != "cuda":  # no bias: one new token, which sees all that is cached
        return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, attn_mask=bias, **options)  # type: ignore[arg-type]
    if options["enable_gqa"]:  # the one fused kernel that takes masks takes no groups
        group = q_BHTK.shape[1] // k_BGSK.shape[1]
        k_BGSK, v_BGSV = k_BGSK.repeat_interleave(group, 1), v_BGSV.repeat_interleave(group, 1)
        options["enable_gqa"] = False
    with sdpa_kernel(MASKED):
        return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, attn_mask=bias, **options)  # type: ignore[arg-type]
