"""Computes softmax attention. Which implementation runs never changes the result beyond rounding.

=========  =======================================================================================================================
sdpa       torch's scaled_dot_product_attention: fused kernels on a GPU, flash on a CPU
matmul     scores in memory, softmax, values: does everything; on a CPU two to three times faster than SDPA at the short rows of
           small runs, and all operations are visible to a FLOP counter
flex       torch's FlexAttention, compiled for the mask at hand: documents, windows, caps, slopes, sinks
varlen     torch's FlashAttention over rows with borders: documents, windows
flash      a flash-attn package, as far as its signature goes
=========  =======================================================================================================================

``auto`` takes the first of an order that depends on what is asked (`_order`); a backend that is asked for by name runs or is refused
with the reason. Documents go to Flex before the others because those count borders on the host, which waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slm.config.errors import ConfigError, suggest
from slm.model.attention import flash as _flash
from slm.model.attention import flex as _flex
from slm.model.attention import sdpa as _sdpa
from slm.model.attention.plain import matmul
from slm.model.attention.scores import Request, Scores
from slm.model.sequence import Mask

__all__ = ["BACKENDS", "Choice", "Request", "Scores", "attend", "choose", "supported"]
MATMUL_MAX_KEYS = 512
"""Above this the scores no longer fit into a CPU's cache and SDPA is the faster one."""


def _nowhere(device: torch.device) -> str:
    return ""


def _nothing(asked: Request) -> str:
    return ""


@dataclass(frozen=True)
class Backend:
    """An implementation of attention."""

    run: Callable[[Tensor, Tensor, Tensor, Mask, Scores], Tensor]
    cannot: Callable[[Request], str] = _nothing
    """What of a request it can't do; empty if all."""
    missing: Callable[[torch.device], str] = _nowhere
    """Why it can't run on a device at all; empty if it can."""


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(_sdpa.sdpa, _sdpa.cannot),
    "matmul": Backend(matmul),
    "flex": Backend(_flex.flex, _flex.cannot, _flex.missing),
    "varlen": Backend(_flash.varlen, _flash.cannot_varlen, _flash.missing_varlen),
    "flash": Backend(_flash.flash, _flash.cannot_flash, _flash.missing_flash),
}


class Choice(NamedTuple):
    """A backend and why it was taken."""

    backend: str
    reason: str


def supported(name: str, asked: Request) -> tuple[bool, str]:
    """Whether a backend can do what is asked, and if not, why."""
    one = BACKENDS[name]
    reason = one.missing(asked.device) or one.cannot(asked)
    return not reason, reason


def choose(name: str, asked: Request) -> Choice:
    """The backend that ``impl.attention=name`` means for a request, and why.

    Raises:
        ConfigError: there is no such backend, or it can't do this.
    """
    if name != "auto":
        if name not in BACKENDS:
            raise ConfigError(f"Unknown attention backend {name!r}. {suggest(name, ['auto', *BACKENDS])}")
        possible, reason = supported(name, asked)
        if not possible:
            raise ConfigError(
                f"impl.attention={name} can't do this model's attention here: {reason}. Use impl.attention=auto or matmul."
            )
        return Choice(name, "asked for")
    refused: list[str] = []
    for other, why in _order(asked):
        possible, reason = supported(other, asked)
        if possible:
            return Choice(other, "; ".join([why, *refused]))
        refused.append(f"not {other}: {reason}")
    raise AssertionError("matmul does everything and ends every order")


def _order(asked: Request) -> tuple[tuple[str, str], ...]:
    """Backends with the reason for each, the best first."""
    everything = ("matmul", "does everything, with scores in memory")
    if asked.device.type != "cuda":
        short = asked.device.type == "cpu" and asked.keys <= MATMUL_MAX_KEYS and asked.queries > 1
        if short:
            return (("matmul", f"the fastest on a CPU up to {MATMUL_MAX_KEYS} keys"),)
        return (("sdpa", f"the fastest on {asked.device.type}"), everything)
    masked = ("sdpa", "with a mask in memory")
    if asked.queries != asked.keys:
        return (("sdpa", "a few queries over a cache"), everything)
    if asked.dense:
        first = "cuDNN first" if _sdpa.hopper(asked.device) else "FlashAttention 2 where it can"
        return (("sdpa", f"dense and causal: {first}"), everything)
    if asked.softcap or asked.slopes or asked.sinks:
        return (("flex", "fused, with caps, slopes and sinks"), masked, everything)
    if asked.documents:
        skips = "skips what other documents hide"
        return (("flex", skips), ("flash", skips), ("varlen", skips), masked, everything)
    skips = "skips what lies outside the window"
    return (("flash", skips), ("varlen", skips), ("flex", skips), masked, everything)


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, mask: Mask, scores: Scores, *, backend: str = "auto"
) -> Tensor:
    """Attention with G key/value heads shared by H query heads. Returns (B, H, T, V).

    Raises:
        ConfigError: the backend doesn't exist or can't do what ``scores`` asks for.
    """
    taken = choose(backend, Request.of(q_BHTK, k_BGSK, v_BGSV, mask, scores)).backend
    return BACKENDS[taken].run(q_BHTK, k_BGSK, v_BGSV, mask, scores)
