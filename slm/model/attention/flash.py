"""Attention kernels that take documents as one long row with borders: torch's own (``varlen``) and the flash-attn packages (``flash``).

==============  ========================  =========================================================================================
FlashAttention  module                    where it comes from
==============  ========================  =========================================================================================
3               flash_attn_interface      built for Hopper GPUs; taken first there
2               flash_attn                pip install flash-attn, which compiles for an hour or so where there is no wheel
4               flash_attn.cute           pip install flash-attn-4 (a pre-release, in Python)
torch's         torch.nn.attention        FlashAttention 2 as torch brings it along; no softcap
==============  ========================  =========================================================================================

What a function can do is read off its signature, for these packages change. With documents their borders must be known to the host, so
that each forward pass waits for the device once; a fixed number of borders would be wrong for a row that has more.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.attention.scores import Request, Scores
from slm.model.attention.sdpa import hopper
from slm.model.sequence import Mask

WIDEST_HEAD = 256


class Package(NamedTuple):
    """A flash-attn package: its two functions."""

    name: str
    dense: Callable[..., Any]
    documents: Callable[..., Any]

    @property
    def options(self) -> frozenset[str]:
        """Arguments that both take."""
        both = (inspect.signature(f).parameters.keys() for f in (self.dense, self.documents))
        return frozenset.intersection(*map(frozenset, both))


@lru_cache
def package(on_hopper: bool) -> Package | None:
    """The package to use, if one is installed and can be imported."""
    places = ["flash_attn_interface"] if on_hopper else []
    for place in (*places, "flash_attn", "flash_attn.cute"):
        try:
            module = importlib.import_module(place) if importlib.util.find_spec(place) else None
        except (ImportError, OSError):  # one that was built for another torch
            continue
        if module is not None and hasattr(module, "flash_attn_func") and hasattr(module, "flash_attn_varlen_func"):
            return Package(place, module.flash_attn_func, module.flash_attn_varlen_func)
    return None


@lru_cache
def torchs() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """torch's function and the names of its arguments; None before it had one."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def missing_flash(device: torch.device) -> str:
    """Why no flash-attn package can run on a device."""
    if device.type != "cuda":
        return "flash-attn needs a CUDA device"
    return "" if package(hopper(device)) else "flash-attn isn't installed, or was built for another torch"


def missing_varlen(device: torch.device) -> str:
    """Why torch's function can't run on a device."""
    if device.type != "cuda":
        return "torch's varlen attention needs a CUDA device"
    return "" if torchs() else f"torch {torch.__version__} has no torch.nn.attention.varlen"


def _neither(asked: Request) -> str:
    """What of a request none of them can do."""
    if asked.queries != asked.keys:
        return "it is for whole rows, and this continues from a cache"
    if asked.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in fp16 and bf16, not in {str(asked.dtype).removeprefix('torch.')}"
    if asked.width != asked.value_width:
        return f"queries are {asked.width} wide and values {asked.value_width}"
    if asked.width > WIDEST_HEAD or asked.width % 8:
        return f"heads are {asked.width} wide, it does multiples of 8 up to {WIDEST_HEAD}"
    if asked.sinks:
        return "it has no sinks"
    if asked.documents and asked.graph:
        return "borders of documents are counted on the host, which no compiled or recorded graph can do; use flex"
    return ""


def cannot_flash(asked: Request) -> str:
    """What of a request the installed flash-attn can't do."""
    if why := _neither(asked):
        return why
    found = package(hopper(asked.device))
    wanted = {"window_size": asked.window, "softcap": asked.softcap, "alibi_slopes": asked.slopes}
    absent = [name for name, needed in wanted.items() if needed and found and name not in found.options]
    return f"{found.name} has no {absent[0]}" if found and absent else ""


def cannot_varlen(asked: Request) -> str:
    """What of a request torch's function can't do."""
    if why := _neither(asked):
        return why
    if asked.softcap or asked.slopes:
        return f"it has no {'softcap' if asked.softcap else 'slopes'}"
    found = torchs()
    if found is not None and asked.window and "window_size" not in found[1]:
        return f"that of torch {torch.__version__} has no windows"
    return "" if found is None or "scale" in found[1] else f"that of torch {torch.__version__} has no scale"


def flash(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """(B, H, T, K), by a flash-attn package."""
    found = package(hopper(q_BHTK.device))
    assert found is not None  # asked before
    options: dict[str, Any] = {"softmax_scale": scores.scale, "causal": True}
    if scores.window is not None and scores.window < mask.length:
        options["window_size"] = (scores.window - 1, 0)
    if scores.softcap is not None:
        options["softcap"] = scores.softcap
    if scores.slopes_H is not None:
        options["alibi_slopes"] = scores.slopes_H.float()
    q_BTHK, k_BTGK, v_BTGK = (t.transpose(1, 2) for t in (q_BHTK, k_BGTK, v_BGTK))
    if mask.docs_BT is None:
        return _first(found.dense(q_BTHK, k_BTGK, v_BTGK, **options)).transpose(1, 2)
    borders, (B, T) = borders_of(mask), q_BTHK.shape[:2]
    q_NHK, k_NGK, v_NGK = (t.flatten(0, 1) for t in (q_BTHK, k_BTGK, v_BTGK))
    names = {"cu_seqlens_q": borders, "cu_seqlens_k": borders, "max_seqlen_q": T, "max_seqlen_k": T}
    return _first(found.documents(q_NHK, k_NGK, v_NGK, **names, **options)).unflatten(0, (B, T)).transpose(1, 2)


def _first(out: Any) -> Tensor:
    """Some versions return the log-sums too."""
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def varlen(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """(B, H, T, K), by torch's function."""
    found = torchs()
    assert found is not None  # asked before
    call, known = found
    group = q_BHTK.shape[1] // k_BGTK.shape[1]
    options: dict[str, Any] = {"scale": scores.scale}
    if group > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif group > 1:
        k_BGTK, v_BGTK = (t.repeat_interleave(group, 1) for t in (k_BGTK, v_BGTK))
    if "window_size" in known:
        left = scores.window - 1 if scores.window is not None and scores.window < mask.length else -1
        options["window_size"] = (left, 0)
    else:
        options["is_causal"] = True
    borders, (B, T) = borders_of(mask, len(q_BHTK)), (q_BHTK.shape[0], q_BHTK.shape[2])
    rows = (t.transpose(1, 2).flatten(0, 1) for t in (q_BHTK, k_BGTK, v_BGTK))
    return call(*rows, borders, borders, T, T, **options).unflatten(0, (B, T)).transpose(1, 2)  # type: ignore[no-any-return]


def borders_of(mask: Mask, rows: int = 0) -> Tensor:
    """Where documents begin in all rows one after the other, and the end: int32. ``rows``: how many, where there are no documents."""

    def made() -> Tensor:
        if mask.docs_BT is None:
            return torch.arange(0, (rows + 1) * mask.length, mask.length, dtype=torch.int32, device=mask.device)
        begins_BT = mask.document_begins()
        return F.pad(begins_BT.flatten().nonzero()[:, 0], (0, 1), value=begins_BT.numel()).to(torch.int32)

    return mask.remembered(("borders", rows), made)  # type: ignore[no-any-return]
