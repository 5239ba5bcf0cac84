"""Fixtures: the smallest experiment that exercises everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from slm.run import Run


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a directory of its own: relative defaults (runs/, data/) never meet."""
    monkeypatch.chdir(tmp_path)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A run of about 20k parameters on synthetic text, as plain data. ``train__seed=1`` changes a nested key."""
    config: dict[str, Any] = {
        "name": "tiny",
        "model": {"dim": 32, "layers": 2, "attention": {"name": "gqa", "heads": 4, "kv_heads": 2}, "ffn": {"name": "swiglu", "hidden": 64}},
        "tokenizer": {"name": "bytes"},
        "data": {"source": {"name": "synthetic", "count": 96, "length": 40}, "seq_len": 32, "heldout": 0.1},
        "train": {
            "budget": {"steps": 12},
            "batch_tokens": 256,
            "optim": {"name": "adamw", "lr": 3e-3},
            "schedule": {"name": "wsd", "warmup": "2 steps", "decay": "4 steps"},
            "precision": "fp32",
        },
        "impl": {"device": "cpu", "threads": 1},
        "log": {"every": 1, "eval_every": "6 steps", "checkpoint_every": "4 steps", "eval_rows": 8},
    }  # fmt: skip
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = config
        for key in keys:
            place = place.setdefault(key, {})
        place[last] = value
    return config


@pytest.fixture
def tiny() -> Callable[..., Run]:
    """Makes the tiny run, with changes such as ``train__seed=1``."""
    return lambda **changes: Run(**tiny_config(**changes))
