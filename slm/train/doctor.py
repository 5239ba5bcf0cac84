"""What this machine offers to a training run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from typing import Any

import torch

from slm.config.cores import usable_cores
from slm.cost.device import peak_flops
from slm.model.attention.backends import BACKENDS, Request, choose, supported
from slm.train.parallel.world import pick_device
from slm_kernels.dispatch import usual

OPTIONAL = {
    "transformers": "needed to verify exports: pip install 'slm[hf]'",
    "wandb": "needed for log.wandb: pip install 'slm[wandb]'",
    "tensorboard": "needed for log.tensorboard: pip install 'slm[tb]'",
    "triton": "Triton kernels; comes with torch on Linux with CUDA",
    "flash_attn": "optional attention kernels on CUDA",
}


def examine() -> dict[str, Any]:
    """Checks as ``{"name", "value", "hint"}``; values are measured here, not looked up."""
    device = pick_device("auto")
    checks = [
        _check("python", platform.python_version()),
        _check("torch", torch.__version__),
        _check("device (auto)", _device_name(device)),
        _check("bf16 peak", _peak(device)),
        _check("cores / threads", f"{usable_cores()} / {torch.get_num_threads()}"),
        *_attention(device),
        *_kernels(device),
        *_cpu_speed(),
    ]
    for package, hint in OPTIONAL.items():
        version = _version(package)
        checks.append(_check(package, version or "not installed", "" if version else hint))
    return {"device": str(device), "checks": checks}


def _attention(device: torch.device) -> list[dict[str, str]]:
    """Which backends can run here, and what ``impl.attention=auto`` takes in training for the usual kinds of rows."""
    row = Request(device, torch.bfloat16 if device.type == "cuda" else torch.float32, 2048, 2048, 64, 64)
    bare = {name: backend.missing(device) for name, backend in BACKENDS.items()}
    able = {name: supported(name, row)[1] for name in BACKENDS}
    checks = [_check("attention backends", ", ".join(name for name, why in able.items() if not why))]
    checks += [_check(f"attention {name}", "no", bare[name] or why) for name, why in able.items() if why]
    kinds = {
        "dense rows": row,
        "documents": row._replace(documents=True),
        "windows": row._replace(window=True),
        "softcap": row._replace(softcap=True),
        "sinks": row._replace(sinks=True),
    }
    for kind, asked in kinds.items():
        taken = choose("auto", asked)
        checks.append(_check(f"attention auto, {kind}", taken.backend, taken.reason))
    return checks


def _kernels(device: torch.device) -> list[dict[str, str]]:
    """What ``impl.kernels=auto`` takes for the ops of slm_kernels."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, choice in usual(device).items():
        found.setdefault(choice, []).append(name)
    return [_check(f"kernels by {impl}", ", ".join(names), reason) for (impl, reason), names in found.items()]


def _check(name: str, value: str, hint: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "hint": hint}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak(device: torch.device) -> str:
    peak = peak_flops(_device_name(device))
    return f"{peak / 1e12:.0f} TFLOP/s" if peak else "n/a (unknown device; MFU will be n/a)"


def _cpu_speed() -> list[dict[str, str]]:
    """Matrix-product speed of this CPU in both precisions: which one `train.precision` should be here."""
    speeds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(1024, 512).to(dtype)
        a @ a.mT  # the first call sets the library up
        started, products = time.perf_counter(), 0
        while time.perf_counter() - started < 0.2:
            a @ a.mT
            products += 1
        speeds[name] = 2 * 1024 * 1024 * 512 * products / (time.perf_counter() - started) / 1e9
    hint = "" if speeds["bf16"] > speeds["fp32"] else "bf16 is slow on this CPU: train.precision=auto takes fp32"
    return [_check("CPU matmul fp32 / bf16", f"{speeds['fp32']:.0f} / {speeds['bf16']:.0f} GFLOP/s", hint)]


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
