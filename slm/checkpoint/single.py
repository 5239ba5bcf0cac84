"""A checkpoint from a single process, whole when it returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.checkpoint.config import Retention
from slm.checkpoint.saver import Saver

if TYPE_CHECKING:
    from torch import Tensor


def save(
    run_dir: Path,
    step: int,
    *,
    model: "Mapping[str, Tensor]",
    optimizer: "Mapping[str, Tensor]",
    state: Mapping[str, Any],
    config: str,
    tokenizer: bytes,
    keep: int = 2,
) -> Path:
    """Write a checkpoint from a single process and wait for it; all but the ``keep`` newest go.

    Raises:
        RunError: the disk is full or not writable; the checkpoints written before stay valid.
    """
    saver = Saver(run_dir, Retention(last=keep), asynchronous=False)
    saver.save(step, {"model": model, "optimizer": optimizer}, state, config, tokenizer)
    assert saver.committed is not None
    return saver.committed
