"""Launch configurations: fixed ones by default, so that a first step is predictable; measured ones on request.

SLM_KERNELS_AUTOTUNE=1 measures the candidates of each kernel the first time it meets a class of shapes on a GPU, and
writes the fastest to a JSON file (SLM_KERNELS_CACHE, by default ~/.cache/slm_kernels/tuned.json), which later runs read
while the variable is set. Entries are kept per GPU, Triton version, kernel and shape.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from slm_kernels._triton import INTERPRETED, triton


class Config(NamedTuple):
    """How a kernel is launched."""

    block: int
    """Numbers, or rows, that a program treats at a time; what exactly is said by the kernel."""
    warps: int
    stages: int = 2


def tuned(
    kernel: str, key: Sequence[Any], default: Config, candidates: Sequence[Config], launch: Callable[[Config], object]
) -> Config:
    """The configuration to launch ``kernel`` with for the class of shapes ``key``.

    ``launch`` runs the kernel; it may run any number of times, so it mustn't change what the kernel reads. Candidates
    that can't be launched (too much shared memory) are passed over.
    """
    if not _enabled():
        return default
    return _Cache.of(cache_file()).best(f"{kernel} {' '.join(map(str, key))}", default, candidates, launch)


def _enabled() -> bool:
    return os.environ.get("SLM_KERNELS_AUTOTUNE", "") not in ("", "0") and not INTERPRETED and torch.cuda.is_available()


def cache_file() -> Path:
    """Where measured configurations are kept."""
    named = os.environ.get("SLM_KERNELS_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "slm_kernels" / "tuned.json"


def _milliseconds(run: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(run, warmup=5, rep=20, return_mode="median"))


def _machine() -> str:
    return f"{torch.cuda.get_device_name()} triton {triton.__version__}"


class _Cache:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.known: dict[str, dict[str, list[int]]] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.known = {}

    @staticmethod
    @lru_cache
    def of(path: Path) -> "_Cache":
        return _Cache(path)

    def best(
        self, name: str, default: Config, candidates: Sequence[Config], launch: Callable[[Config], object]
    ) -> Config:
        here = self.known.setdefault(_machine(), {})
        if name not in here:
            times: dict[Config, float] = {}
            for config in dict.fromkeys((default, *candidates)):
                try:
                    times[config] = _milliseconds(lambda config=config: launch(config))  # type: ignore[misc]
                except Exception:  # each backend has its own error for a configuration that doesn't fit
                    continue
            fastest = min(times, key=times.__getitem__) if times else default
            here[name] = list(fastest)
            self._write()
        return Config(*here[name])

    def _write(self) -> None:
        """All at once: several ranks may write, and the last one wins."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
            json.dump(self.known, file, indent=1, sort_keys=True)
        os.replace(file.name, self.path)
