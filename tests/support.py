"""What several tests share."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def slm(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; fails unless it ends with ``code``."""
    done = subprocess.run([sys.executable, "-m", "slm", *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


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
