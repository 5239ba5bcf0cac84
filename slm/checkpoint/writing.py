"""The files of a checkpoint, written into a directory that isn't one yet, and the step that makes it one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.checkpoint.layout import PIN, clear_litter, group_of, pinned, remove, tensor_file, tokenizer_file
from slm.checkpoint.manifest import CheckedFile, Entry, Manifest, write_checked
from slm.checkpoint.pieces import Share, bytes_of, share_of
from slm.checkpoint.tensor_file import Part, dtype_name, read_header, write_tensors
from slm.config.errors import ConfigError, RunError
from slm.config.files import sync_directory, write_durably

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Mapping[str, Tensor]"]
"""Group -> name -> tensor, plain or a `DTensor`."""
Stage = Callable[[str, str, "Tensor"], "Tensor"]
"""(group, name, tensor) -> the tensor that will be written in its place."""
Note = Callable[[Path], None]
"""Told of each file before it is written."""


def _as_it_is(group: str, name: str, t: "Tensor") -> "Tensor":
    return t


def parts_of(tensors: Tensors, rank: int = 0, stage: Stage = _as_it_is) -> dict[str, list[Part]]:
    """What this process writes of each group, groups without anything included."""
    found: dict[str, list[Part]] = {}
    for group, named in tensors.items():
        if not group.replace("_", "").isalnum():
            raise ValueError(f"a group of tensors needs a plain name for its file, not {group!r}")
        shares = {name: share_of(f"{group}/{name}", t, rank) for name, t in named.items()}
        found[group] = [
            _part(name, share, stage(group, name, share.tensor))
            for name, share in shares.items()
            if share and share.writes
        ]
    return found


def _part(name: str, share: Share, t: "Tensor") -> Part:
    return Part(name, dtype_name(name, t.dtype), share.region, lambda: bytes_of(t.cpu().contiguous()))


def write_groups(
    folder: Path, groups: Mapping[str, Sequence[Part]], rank: int = 0, size: int = 1, note: Note = lambda file: None
) -> dict[str, Entry]:
    """Write this process's file of each group. Without any parts only a single process writes one."""
    entries = {}
    for group, parts in groups.items():
        if parts or size == 1:
            file = tensor_file(group, rank, size)
            note(folder / file)
            entries[file] = write_tensors(folder / file, parts)
    return entries


def write_texts(
    folder: Path, state: Mapping[str, Any], config: str, tokenizer: bytes, note: Note = lambda file: None
) -> dict[str, Entry]:
    """Write what isn't tensors."""
    contents = {
        "state.json": json.dumps(state, indent=1).encode(),
        "config.yaml": config.encode(),
        tokenizer_file(tokenizer): tokenizer,
    }
    entries = {}
    for name, raw in contents.items():
        note(folder / name)
        entries[name] = write_checked(folder / name, [raw])
    return entries


def join_lone_files(folder: Path, groups: Iterable[str], entries: dict[str, Entry]) -> dict[str, Entry]:
    """Give a group that only one process had parts of the file name of a single process: replicas look like one process."""
    named = dict(entries)
    for group in groups:
        files = [name for name in entries if group_of(name) == group]
        if len(files) == 1 and files[0] != tensor_file(group, 0, 1) and _all_whole(folder, files[0], entries):
            (folder / files[0]).rename(folder / tensor_file(group, 0, 1))
            named[tensor_file(group, 0, 1)] = named.pop(files[0])
    return named


def _all_whole(folder: Path, name: str, entries: dict[str, Entry]) -> bool:
    with CheckedFile(folder, name, entries[name]) as file:
        return all(piece.region.is_whole for piece in read_header(file).values())


def commit(partial: Path, final: Path, manifest: Manifest) -> None:
    """Make a directory of files a checkpoint: list them, flush, rename. One of the same name gives way; its pin stays."""
    manifest.write(partial)
    why = pinned(final)
    if why is not None:
        write_durably(partial / PIN, f"{why}\n".encode())
    sync_directory(partial)
    if final.exists():  # only ever a repeated save of the same step
        remove(final)
    os.replace(partial, final)
    sync_directory(final.parent)


def write_directory(
    out: Path, step: int, groups: Mapping[str, Sequence[Part]], state: Mapping[str, Any], config: str, tokenizer: bytes
) -> Path:
    """Write a checkpoint that belongs to no run at ``out``, whole or not at all.

    Raises:
        ConfigError: there is something at ``out``.
        RunError: the disk is full or not writable.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already. Choose another directory with --out.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True)
        entries = write_groups(partial, groups) | write_texts(partial, state, config, tokenizer)
        if out.exists():
            out.rmdir()
        commit(partial, out, Manifest(step, entries))
    except OSError as error:
        raise RunError(
            f"Can't write the checkpoint {out}: {error.strerror or error}. Nothing was left there."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def begin(partial: Path, attempt: str) -> None:
    """Make the directory that a save writes into, free of what earlier ones left; ``attempt`` tells them apart."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    clear_litter(partial.parent)
    partial.mkdir()
    write_durably(partial / "id", attempt.encode())
