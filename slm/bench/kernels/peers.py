"""Who takes part: plain torch, torch.compile, Liger-Kernel where it is installed, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import slm_kernels
from slm.bench.kernels.cases import Case

Call = Callable[..., Any]


def _head(x: Tensor, w: Tensor, y: Tensor) -> Any:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Function

    found = Function.apply(x, w, y, None, None, -100, 0.0, 0.0, "sum")
    return found[0] if isinstance(found, tuple) else found


def _norm(x: Tensor, w: Tensor) -> Any:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction as Function

    return Function.apply(x, w, 1e-5, 0.0, "llama", False)


def _swiglu(g: Tensor, u: Tensor) -> Any:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Function

    return Function.apply(g.clone(), u.clone())  # its backward pass writes into them


LIGER: dict[str, Call] = {"linear_cross_entropy": _head, "rms_norm": _norm, "swiglu": _swiglu}
"""Its functions as the project documents them; they run on a GPU only."""


PEERS = ("eager", "compile", "liger")


def contestants(case: Case, device: torch.device, without: Sequence[str] = ()) -> dict[str, Call]:
    """By name; ours last. ``ours`` is the kernel where one can run, else the op in plain torch."""
    found: dict[str, Call] = {}
    if "eager" not in without:
        found["eager"] = case.plain
    if "compile" not in without:
        found["compile"] = torch.compile(case.plain, dynamic=False)
    if "liger" not in without and case.liger and device.type == "cuda" and has_liger():
        found["liger"] = LIGER[case.liger]
    return found | {"ours": partial(case.ours, impl=our_impl(device))}


def our_impl(device: torch.device) -> str:
    """What ``ours`` is on a device."""
    return "triton" if device.type == "cuda" and not slm_kernels.unavailable(device) else "torch"


def has_liger() -> bool:
    """Whether Liger-Kernel can be imported."""
    try:
        import liger_kernel.ops  # noqa: F401
    except ImportError:
        return False
    return True
