"""Which checkpoint a run goes on from, and what a run has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slm.checkpoint.layout import folder_of, pinned, recorded_state, step_of, steps
from slm.checkpoint.manifest import verify
from slm.config.errors import RunError
from slm.config.files import sync_directory


def newest(run_dir: Path, consent: bool = False, say: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest checkpoint of a run, every byte of it verified; None if there is none.

    If it is damaged, an older one is used only with ``consent`` (``log.resume=latest-valid``). Then the damaged ones are renamed to
    ``damaged-step-...``: what comes now is another future than theirs. For one process: the others ask `latest` after it.

    Raises:
        RunError: it is damaged; the file and the offset are named, and which earlier one is whole.
    """
    damaged: list[tuple[Path, RunError]] = []
    for path in reversed(steps(folder_of(run_dir))):
        fault = fault_of(path)
        if fault is None:
            break
        damaged.append((path, fault))
    else:
        if damaged:
            raise RunError(f"{damaged[0][1]} No checkpoint of {run_dir} is whole.")
        return None
    if damaged and not consent:
        raise RunError(f"{damaged[0][1]} Of the earlier ones {path.name} is whole.")
    for bad, fault in damaged:
        say(f"{fault}")
        say(
            f"It is set aside as {_set_aside(bad).name}; the run goes on from {path.name}, as log.resume=latest-valid allows."
        )
    return path


def fault_of(path: Path) -> RunError | None:
    """What is wrong with a checkpoint; None if every byte is as written."""
    try:
        verify(path)
    except RunError as error:
        return error
    return None


def _set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it no longer counts as one."""
    try:
        for i in range(1, 1000):
            kept = path.with_name(f"damaged-{path.name}" + (f".{i}" if i > 1 else ""))
            if not kept.exists():
                path.rename(kept)
                sync_directory(path.parent)
                return kept
    except OSError as error:
        raise RunError(f"Can't set the damaged checkpoint {path} aside: {error.strerror or error}.") from None
    raise RunError(f"There are too many damaged checkpoints in {path.parent}: look into the disk, then remove them.")


@dataclass(frozen=True)
class Listed:
    """A line of the listing. ``tokens``, ``heldout_bpb``: None if unknown; ``whole``: None if it wasn't verified."""

    path: Path
    step: int
    tokens: int | None
    bytes: int
    heldout_bpb: float | None
    pinned: str | None
    whole: bool | None
    fault: str | None


def listing(run_dir: Path, check: bool = False) -> list[Listed]:
    """The checkpoints of a run, oldest first; ``check`` verifies every byte of them."""
    found = []
    for path in steps(folder_of(run_dir)):
        state = recorded_state(path)
        fault = fault_of(path) if check else None
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        whole = fault is None if check else None
        found.append(
            Listed(path, step_of(path), state.get("tokens"), size, state.get("heldout_bpb"), pinned(path), whole, str(fault) if fault else None)
        )  # fmt: skip
    return found
