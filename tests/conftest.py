"""Fixtures: the smallest experiment that exercises everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before slm_kernels is imported: its kernels then run on a CPU

from support import tiny_config

from slm.run import Run


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a directory of its own: relative defaults (runs/, data/) never meet."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny() -> Callable[..., Run]:
    """Makes the tiny run, with changes such as ``train__seed=1``."""
    return lambda **changes: Run(**tiny_config(**changes))
