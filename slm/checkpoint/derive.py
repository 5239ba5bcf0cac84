"""Checkpoints made from checkpoints: pieces merged, weights averaged. They belong to no run; eval, generate and export take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slm.checkpoint.layout import folder_of, is_checkpoint, resolve, run_dir_of, steps
from slm.checkpoint.manifest import Manifest
from slm.checkpoint.pieces import Region, bytes_of
from slm.checkpoint.reading import Checkpoint, GroupReader, groups_of, load
from slm.checkpoint.tensor_file import Part
from slm.checkpoint.writing import parts_of, write_directory
from slm.config.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Average = Callable[["Iterator[Mapping[str, Tensor]]", Sequence[float] | None], "Mapping[str, Tensor]"]
"""(weights of each checkpoint in turn, shares) -> their mean."""


def merge(path: Path, out: Path) -> Path:
    """Write a checkpoint with one file per group, whatever pieces it was saved in. One tensor at a time is in memory.

    Raises:
        ConfigError: there is something at ``out``.
        RunError: damage, named; a full disk.
    """
    texts = load(path, groups=())
    manifest = Manifest.read(path)
    with ExitStack() as stack:
        readers = {g: stack.enter_context(GroupReader(path, g, manifest)) for g in groups_of(manifest)}
        groups = {g: [_whole_part(reader, name) for name in reader.pieces] for g, reader in readers.items()}
        return write_directory(out, manifest.step, groups, texts.state, texts.config, texts.tokenizer)


def _whole_part(reader: GroupReader, name: str) -> Part:
    first = reader.pieces[name][0]
    whole = first.region.whole
    return Part(name, first.dtype, Region(whole, (0,) * len(whole), whole), lambda: bytes_of(reader.whole(name)))


def write_average(paths: Sequence[Path], out: Path, average: Average, shares: Sequence[float] | None = None) -> Path:
    """Write the mean of some checkpoints' weights as a checkpoint, with the last one's config and no optimiser state.

    Raises:
        ConfigError: the checkpoints are of different models or tokenizers; there is something at ``out``.
        RunError: damage, named; a full disk.
    """
    if not paths:
        raise ConfigError("Name the checkpoints to average.")
    read: list[Checkpoint] = []

    def weights() -> Iterator[Mapping[str, Tensor]]:
        for path in paths:
            checkpoint = load(path, groups=("model",))
            if read:
                _refuse_another_model(read[0], checkpoint)
            read.append(Checkpoint(path, {}, checkpoint.state, checkpoint.config, checkpoint.tokenizer))
            yield checkpoint.model

    mean = average(weights(), shares)
    last = read[-1]
    state: dict[str, Any] = {k: last.state[k] for k in ("step", "tokens", "identity") if k in last.state}
    state["average"] = {"of": [str(p) for p in paths], "shares": None if shares is None else list(shares)}
    return write_directory(out, state.get("step", 0), parts_of({"model": mean}), state, last.config, last.tokenizer)


def expand(given: Sequence[str]) -> list[Path]:
    """The checkpoints that a user means: step directories as they are, a single run as all of its checkpoints."""
    if len(given) == 1 and not is_checkpoint(Path(given[0])):
        return steps(folder_of(run_dir_of(given[0])))
    return [resolve(one) for one in given]


def _refuse_another_model(first: Checkpoint, other: Checkpoint) -> None:
    if yaml.safe_load(first.config).get("model") != yaml.safe_load(other.config).get("model"):
        raise ConfigError(
            f"{other.path} is a checkpoint of another model than {first.path}; only equal ones can be averaged."
        )
    if first.tokenizer != other.tokenizer:
        raise ConfigError(f"{other.path} has another tokenizer than {first.path}; their weights don't mean the same.")
