"""torch's FlexAttention: a fused kernel that torch.compile writes for the scores and the mask at hand, with blocks of keys skipped that
no query sees. On a CPU it runs plainly, without gradients: for tests.

A sink is a key without a value. With lse the logarithm of the sum of exponentials that the kernel reports, leaving it in the
denominator is a factor: exp(lse) / (exp(lse) + exp(sink)) = sigmoid(lse - sink).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from slm.model.attention.scores import Request, Scores
from slm.model.sequence import Mask
from slm_kernels.dispatch import one_graph, unavailable

BLOCK = 128
"""Queries, and keys, of a block: torch's own."""
SMALLEST_HEAD = 16
"""Below this the kernel's tiles are too narrow for the hardware's products."""


def missing(device: torch.device) -> str:
    """Why it can't run on a device."""
    if device.type == "cuda":
        return unavailable(device)
    return "" if device.type == "cpu" else f"FlexAttention isn't made for {device.type}"


def cannot(asked: Request) -> str:
    """What of a request this can't do."""
    if asked.device.type == "cpu" and asked.gradient:
        return "FlexAttention has no gradient on a CPU"
    if asked.device.type == "cuda" and min(asked.width, asked.value_width) < SMALLEST_HEAD:
        return f"its kernels need heads of {SMALLEST_HEAD} numbers or more"
    return ""


def flex(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """(B, H, T, V)."""
    call: Any = flex_attention if _plainly(q_BHTK) else _compiled()
    options: dict[str, Any] = {
        "score_mod": _scored(mask, scores, k_BGSK.shape[2]),
        "block_mask": block_mask(mask, k_BGSK.shape[2], scores.window),
        "scale": scores.scale,
        "enable_gqa": q_BHTK.shape[1] != k_BGSK.shape[1],
    }
    if scores.sinks_H is None:
        return call(q_BHTK, k_BGSK, v_BGSV, **options)  # type: ignore[no-any-return]
    out_BHTV, lse_BHT = call(q_BHTK, k_BGSK, v_BGSV, **options, return_lse=True)
    kept_BHT = (lse_BHT - scores.sinks_H[:, None]).sigmoid()
    return out_BHTV * kept_BHT[..., None].to(out_BHTV.dtype)  # type: ignore[no-any-return]


def _plainly(q: Tensor) -> bool:
    return q.device.type == "cpu" or torch.compiler.is_compiling()


@cache
def _compiled() -> Callable[..., Any]:
    """One kernel per shape, window and formula."""
    return one_graph(flex_attention, dynamic=False)


def block_mask(mask: Mask, keys: int, window: int | None) -> BlockMask:
    """Which keys each query sees, by blocks; made once per forward pass for layers that see alike."""
    return mask.remembered(("blocks", keys, window), lambda: _block_mask(mask, keys, window))  # type: ignore[no-any-return]


def _block_mask(mask: Mask, keys: int, window: int | None) -> BlockMask:
    """Which blocks of keys some query of a block sees, and which all of them see entirely.

    Every query sees one stretch of keys, from the beginning of its document or window to itself, and neither end ever goes back from
    one query to the next. So the first and the last query of a block say all about it, and nothing of the size of the scores is
    made; torch's `create_block_mask` asks about every pair, gigabytes for a long row.
    """
    before, device = keys - mask.length, mask.device
    place_T = torch.arange(mask.length, device=device, dtype=torch.int32) + before
    lowest_BT = mask.document_starts().int() if mask.docs_BT is not None else torch.zeros_like(place_T)[None]
    if window is not None:
        lowest_BT = torch.maximum(lowest_BT, place_T - (window - 1))
    sees = _with_documents(lowest_BT) if mask.docs_BT is not None else _within(window, before)
    first = torch.arange(0, mask.length, BLOCK, device=device)
    last = (first + BLOCK - 1).clamp(max=mask.length - 1)
    key_first = torch.arange(0, keys, BLOCK, device=device)
    key_last = (key_first + BLOCK - 1).clamp(max=keys - 1)
    seen_BQK = (key_last >= lowest_BT[:, first, None]) & (key_first <= place_T[last, None])
    whole_BQK = (key_first >= lowest_BT[:, last, None]) & (key_last <= place_T[first, None])
    # what reaches beyond an end isn't whole
    whole_BQK &= (key_first + BLOCK <= keys) & (first[:, None] + BLOCK <= mask.length)
    return BlockMask.from_kv_blocks(
        *_listed(seen_BQK & ~whole_BQK),
        *_listed(whole_BQK),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(mask.length, keys),
    )


def _with_documents(lowest_BT: Tensor) -> Callable[..., Tensor]:
    """Whether a query sees a key, for rows of documents; ``lowest_BT``: the first key that each query sees."""

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= lowest_BT[b, query])

    return sees


def _within(window: int | None, before: int) -> Callable[..., Tensor]:
    """The same without documents, where arithmetic says it all; ``before``: keys before the first query."""

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query + before - key
        return distance >= 0 if window is None else (distance >= 0) & (distance < window)

    return sees


def _listed(blocks_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """(how many blocks of keys each block of queries has, their numbers first in each list), int32 with an axis for heads."""
    counts_BQ = blocks_BQK.sum(-1, dtype=torch.int32)
    numbers_BQK = blocks_BQK.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts_BQ[:, None].contiguous(), numbers_BQK[:, None].contiguous()


def _scored(mask: Mask, scores: Scores, keys: int) -> Callable[..., Tensor] | None:
    """What becomes of a score that is scaled already; None: nothing."""
    cap, slopes_H, before = scores.softcap, scores.slopes_H, keys - mask.length
    if cap is None and slopes_H is None:
        return None

    def scored(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if slopes_H is not None:
            score = score - slopes_H[h] * (query + before - key)
        return score

    return scored
