"""The machine a benchmark ran on, and the versions of what was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import slm
from slm.config.cores import usable_cores

PACKAGES = (
    "numpy", "torch", "pyarrow", "tokenizers", "tiktoken", "gigatoken", "datatrove", "grain", "transformers", "accelerate", "litgpt"
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Date, processor, memory, load and versions, as plain data."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "load": list(os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"slm": slm.__version__, **{name: version(name) for name in PACKAGES}},
    }


def version(package: str) -> str | None:
    """The installed version of a package; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
