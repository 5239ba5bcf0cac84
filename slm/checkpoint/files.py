"""Reading and writing checkpoint directories.

::

    <run>/checkpoints/step-00000500/
        model.safetensors       weights by parameter name
        optimizer.safetensors   "<parameter>/<state>" tensors
        state.json              step, data position, counters
        config.yaml             the resolved experiment, itself a recipe
        tokenizer.json          (tokenizer.model, if it is sentencepiece's)
        manifest.json           size and CRC-32 per 1 MiB block of every file, written last
    <run>/checkpoints/latest    name of the newest one, for scripts

A checkpoint is written into a directory with another name, flushed to the disk, then renamed, then pointed
to. Whatever happens before the rename leaves the previous one in force.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import Tensor

from slm.config.errors import RunError
from slm.config.files import replace_durably, sync_directory, write_durably

BLOCK = 1 << 20
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    config: str
    tokenizer: bytes


def save(
    run_dir: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    config: str,
    tokenizer: bytes,
    keep: int = 2,
) -> Path:
    """Write a checkpoint and make it the latest; remove all but the ``keep`` newest.

    Raises:
        RunError: the disk is full or not writable; the checkpoints written before stay valid.
    """
    folder = run_dir / "checkpoints"
    final, partial = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
    files = {
        "model.safetensors": lambda: safetensors.torch.save(_plain(model)),
        "optimizer.safetensors": lambda: safetensors.torch.save(_plain(optimizer)),
        "state.json": lambda: json.dumps(state, indent=1).encode(),
        "config.yaml": config.encode,
        tokenizer_file(tokenizer): lambda: tokenizer,
    }
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": {}}
        for name, content in files.items():
            raw = content()
            write_durably(partial / name, raw)
            manifest["files"][name] = {"bytes": len(raw), "crc32": _checksums(raw)}
        write_durably(partial / "manifest.json", json.dumps(manifest).encode())
        sync_directory(partial)
        shutil.rmtree(final, ignore_errors=True)  # only ever a damaged or repeated save of the same step
        os.replace(partial, final)
        replace_durably(folder / "latest", final.name.encode())
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = latest(run_dir)
        kept = f"The previous checkpoint, {before.name}, is whole" if before else "There is no earlier checkpoint"
        raise RunError(
            f"Can't save the checkpoint of step {step} in {folder}: {error.strerror or error}. {kept}. "
            f"Make room (or set log.dir elsewhere) and run the same command again."
        ) from None
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def tokenizer_file(raw: bytes) -> str:
    """What a tokenizer's file is called: ``tokenizer.json``, or ``tokenizer.model`` for sentencepiece's own format."""
    return "tokenizer.json" if raw.lstrip()[:1] == b"{" else "tokenizer.model"


def latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run directory, or None."""
    steps = _steps(run_dir / "checkpoints")  # a step directory has its name only once it is whole
    return steps[-1] if steps else None


def resolve(path: Path | str) -> Path:
    """The checkpoint directory that a user means by a run directory, a name under runs/, or a step directory."""
    for given in (Path(path), Path("runs") / path):
        if (given / "manifest.json").is_file() and (given / "state.json").is_file():
            return given
        found = latest(given)
        if found is not None:
            return found
    runs = sorted(p.parent.parent.as_posix() for p in Path("runs").glob("*/checkpoints/latest"))
    hint = (
        f"Runs here: {', '.join(runs)}." if runs else "There are no runs here; train one with `slm train quickstart`."
    )
    raise RunError(f"No checkpoint at {str(path)!r}. {hint}")


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises `RunError` naming the file and the offset of the damage."""
    raw = {name: _verified(path, name, entry) for name, entry in _manifest(path)["files"].items()}
    return Checkpoint(
        path,
        safetensors.torch.load(raw["model.safetensors"]),
        safetensors.torch.load(raw["optimizer.safetensors"]),
        json.loads(raw["state.json"]),
        raw["config.yaml"].decode(),
        next(content for name, content in raw.items() if name.startswith("tokenizer.")),
    )


def describe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the resolved experiment, step and counters) of a checkpoint, without reading its tensors."""
    entries = _manifest(path)["files"]
    config, state = (_verified(path, name, entries[name]) for name in ("config.yaml", "state.json"))
    return yaml.safe_load(config), json.loads(state)


def verify(path: Path) -> None:
    """Check every byte of a checkpoint. Raises `RunError` at the first fault."""
    for name, entry in _manifest(path)["files"].items():
        _verified(path, name, entry)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path / 'manifest.json'}: can't be read ({error}). {_instead(path)}") from None
    if manifest.get("format") != FORMAT:
        raise RunError(f"{path}: checkpoint format {manifest.get('format')!r}; this slm reads format {FORMAT}.")
    return manifest  # type: ignore[no-any-return]


def _verified(path: Path, name: str, entry: dict[str, Any]) -> bytes:
    file = path / name
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise RunError(f"{file}: can't be read ({error.strerror}). {_instead(path)}") from None
    if len(raw) != entry["bytes"]:
        raise RunError(f"{file}: {len(raw)} bytes long, the manifest says {entry['bytes']}. {_instead(path)}")
    for block, (found, expected) in enumerate(zip(_checksums(raw), entry["crc32"], strict=True)):
        if found != expected:
            end = min((block + 1) * BLOCK, len(raw))
            raise RunError(
                f"{file}: damaged between byte {block * BLOCK} and {end} (checksum differs). {_instead(path)}"
            )
    return raw


def _instead(path: Path) -> str:
    """What to do about a damaged checkpoint; nothing is chosen silently."""
    older = [p.name for p in _steps(path.parent) if p.name < path.name]
    if older:
        return f"To go on from the one before ({older[-1]}), remove {path} and run the same command again."
    return f"There is no older checkpoint; remove {path.parent} to start from the beginning."


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _checksums(raw: bytes) -> list[int]:
    view = memoryview(raw)
    return [zlib.crc32(view[i : i + BLOCK]) for i in range(0, len(raw), BLOCK)]
