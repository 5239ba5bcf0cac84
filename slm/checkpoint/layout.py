"""Where checkpoints stand, and what their directories hold.

::

    <run>/checkpoints/step-00000500/
        model.safetensors       weights by parameter name
        optimizer.safetensors   "<parameter>/<state>" tensors
        state.json              step, data position, counters
        config.yaml             the resolved experiment, itself a recipe
        tokenizer.json          (tokenizer.model, if it is sentencepiece's)
        manifest.json           size and CRC-32 per 1 MiB block of every file, and of itself; written last
        pinned                  (if somebody said so) why this one must stay
    <run>/checkpoints/latest    name of the newest one, for scripts

With several processes that hold parts of the tensors, each writes its own: ``model-00001-of-00004.safetensors`` and so on. Further
groups of tensors (``ema``, ...) have files of their own. A directory whose name begins with a dot isn't a checkpoint: it is being
written or removed, or a kill left it behind, and the next save clears it away.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from slm.config.errors import ConfigError, RunError
from slm.config.files import replace_durably, sync_directory
from slm.config.runs import instead

FORMAT = 2
"""1: one process, no check of the manifest itself. Still read."""
PIN = "pinned"
_TENSOR_FILE = re.compile(r"^(?P<group>.+?)(-\d{5}-of-\d{5})?\.safetensors$")


def folder_of(run_dir: Path) -> Path:
    """Where a run's checkpoints stand."""
    return run_dir / "checkpoints"


def step_name(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. A step directory has its name only once it is whole."""
    found = (p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit() and p.is_dir())
    return sorted(found, key=step_of)


def aside(path: Path) -> Path:
    """The name of a step directory while it is written or removed."""
    return path.with_name(f".{path.name}.partial")


def clear_litter(folder: Path) -> None:
    """Remove what a kill left half written or half removed."""
    for left in folder.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint so that at no moment a part of it looks like one."""
    doomed = path.with_name(f".{path.name}.removed.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def tensor_file(group: str, rank: int, size: int) -> str:
    """The file of a group's tensors, or of one process's part of them."""
    return f"{group}.safetensors" if size == 1 else f"{group}-{rank + 1:05d}-of-{size:05d}.safetensors"


def group_of(file: str) -> str | None:
    """Which group's tensors a file holds; None if it holds none."""
    match = _TENSOR_FILE.match(file)
    return match["group"] if match else None


def tokenizer_file(raw: bytes) -> str:
    """What a tokenizer's file is called: ``tokenizer.json``, or ``tokenizer.model`` for sentencepiece's own format."""
    return "tokenizer.json" if raw.lstrip()[:1] == b"{" else "tokenizer.model"


def latest(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run directory, or None. Nothing is read: see `newest` for one that is known to be whole."""
    found = steps(folder_of(run_dir))
    return found[-1] if found else None


def resolve(path: Path | str) -> Path:
    """The checkpoint directory that a user means by a run directory, a name under runs/, or a step directory."""
    for given in (Path(path), Path("runs") / path):
        if is_checkpoint(given):
            return given
        found = latest(given)
        if found is not None:
            return found
    raise RunError(f"No checkpoint at {str(path)!r}. {instead(path, _has_checkpoints)}")


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is laid out as a checkpoint."""
    return (path / "manifest.json").is_file() and (path / "state.json").is_file()


def run_dir_of(path: Path | str) -> Path:
    """The run directory that a user means by itself or by a name under runs/. Raises `RunError` if it has no checkpoints."""
    for given in (Path(path), Path("runs") / path):
        if folder_of(given).is_dir():
            return given
    raise RunError(f"No run with checkpoints at {str(path)!r}. {instead(path, _has_checkpoints)}")


def recorded_state(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint, not verified; empty if it can't be read. For listings and retention only."""
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def pin(path: Path, why: str) -> None:
    """Have a checkpoint stay whatever the retention says. Raises `RunError` if it can't be marked."""
    if not is_checkpoint(path):
        raise ConfigError(f"{path} is no checkpoint; name a step directory, such as RUN/checkpoints/step-00000500.")
    try:
        replace_durably(path / PIN, f"{why}\n".encode())
    except OSError as error:
        raise RunError(f"Can't pin {path}: {error.strerror or error}.") from None


def unpin(path: Path) -> bool:
    """Leave a checkpoint to the retention again. Returns whether it was pinned."""
    try:
        (path / PIN).unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RunError(f"Can't unpin {path}: {error.strerror or error}.") from None
    sync_directory(path)
    return True


def pinned(path: Path) -> str | None:
    """Why a checkpoint must stay; None if nobody said so."""
    try:
        return (path / PIN).read_text(errors="replace").strip() or "pinned"
    except FileNotFoundError:
        return None


def _has_checkpoints(run_dir: Path) -> bool:
    return bool(steps(folder_of(run_dir)))
