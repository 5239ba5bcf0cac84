"""Out of a checkpoint: whole tensors, or just the parts that this process holds.

How the tensors were cut when they were written doesn't matter: a group's files together say which boxes of which tensors they hold, and
whoever wants a box gets it from the boxes that overlap it. So a run of 8 processes resumes with 6, sharded or not. Only the blocks of
the files that hold something wanted are read, and each is held against its checksum first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from slm.checkpoint.layout import group_of
from slm.checkpoint.manifest import CheckedFile, Manifest, instead
from slm.checkpoint.pieces import Region, bytes_of, share_of
from slm.checkpoint.tensor_file import Located, dtype_name, dtypes, item_size, read_header
from slm.config.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. ``groups``: whole tensors by group and name."""

    path: Path
    groups: dict[str, dict[str, "Tensor"]]
    state: dict[str, Any]
    config: str
    tokenizer: bytes = field(repr=False)

    @property
    def model(self) -> dict[str, "Tensor"]:
        """Weights by parameter name."""
        return self.groups.get("model", {})

    @property
    def optimizer(self) -> dict[str, "Tensor"]:
        """Optimiser state as ``<parameter>/<state>``; empty if there is none."""
        return self.groups.get("optimizer", {})


@dataclass(frozen=True)
class Spec:
    """What a tensor in a checkpoint is."""

    dtype: "torch.dtype"
    shape: tuple[int, ...]


def load(path: Path, groups: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint with whole tensors, each byte verified; of ``groups`` only, if they are named (the rest isn't read).

    Raises:
        RunError: a file is missing or damaged; it is named, with the offset of the damage.
    """
    manifest = Manifest.read(path)
    wanted = groups_of(manifest) if groups is None else groups
    tensors = {}
    for group in wanted:
        with GroupReader(path, group, manifest) as reader:
            tensors[group] = {name: reader.whole(name) for name in reader.specs}
    tokenizer = next((name for name in manifest.files if name.startswith("tokenizer.")), "tokenizer.json")
    state = json.loads(_content(path, manifest, "state.json"))
    config = _content(path, manifest, "config.yaml").decode()
    return Checkpoint(path, tensors, state, config, _content(path, manifest, tokenizer))


def read_state(path: Path) -> dict[str, Any]:
    """The step, data position and counters of a checkpoint, verified; no tensors are read."""
    state: dict[str, Any] = json.loads(_content(path, Manifest.read(path), "state.json"))
    return state


def describe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the resolved experiment, step and counters) of a checkpoint, verified; no tensors are read."""
    return yaml.safe_load(_content(path, Manifest.read(path), "config.yaml")), read_state(path)


def specs(path: Path, group: str) -> dict[str, Spec]:
    """Names, types and whole shapes of a group's tensors; empty if the checkpoint has no such group."""
    with GroupReader(path, group) as reader:
        return reader.specs


def read_into(path: Path, group: str, tensors: Mapping[str, "Tensor"]) -> None:
    """Fill tensors, sharded or not, with what the checkpoint has under their names: bit for bit, and of the same type.

    Each process reads its own parts. What else the group holds is left alone: `specs` tells.

    Raises:
        RunError: a name is missing; another shape or type; damage in a block that is needed.
    """
    import torch

    with GroupReader(path, group) as reader, torch.no_grad():
        for name, t in tensors.items():
            reader.check(name, t)
            share = share_of(name, t, 0)
            if share is not None:
                reader.fill(name, share.tensor, share.region)


def groups_of(manifest: Manifest) -> list[str]:
    """The groups of tensors that a checkpoint has."""
    return sorted({group for group in map(group_of, manifest.files) if group})


class GroupReader:
    """The tensors of one group, in whatever pieces they were written. Use it in a ``with``: it holds the files open."""

    def __init__(self, path: Path, group: str, manifest: Manifest | None = None) -> None:
        self.path, self.group = path, group
        self.manifest = manifest or Manifest.read(path)
        self.pieces: dict[str, list[Located]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name, entry in self.manifest.files.items():
                if group_of(name) == self.group:
                    file = stack.enter_context(CheckedFile(self.path, name, entry))
                    for tensor, piece in read_header(file).items():
                        self.pieces.setdefault(tensor, []).append(piece)
            for name, pieces in self.pieces.items():
                self._check_pieces(name, pieces)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def specs(self) -> dict[str, Spec]:
        """What each tensor is."""
        return {n: Spec(dtypes()[p[0].dtype], p[0].region.whole) for n, p in self.pieces.items()}

    def whole(self, name: str) -> "Tensor":
        """A tensor, joined from its pieces."""
        import torch

        first = self.pieces[name][0]
        out = torch.empty(first.region.whole, dtype=dtypes()[first.dtype])
        self.fill(name, out, Region(first.region.whole, (0,) * out.ndim, first.region.whole))
        return out

    def check(self, name: str, t: "Tensor") -> None:
        """Raises `RunError` unless there is such a tensor of that shape and type."""
        if name not in self.pieces:
            raise RunError(f"{self.path} has no {name!r} among its {self.group} tensors.")
        first = self.pieces[name][0]
        if (first.region.whole, first.dtype) != (tuple(t.shape), dtype_name(name, t.dtype)):
            raise RunError(
                f"{self.path}: {name!r} is {first.dtype} of shape {first.region.whole} there, and {dtype_name(name, t.dtype)} of "
                f"shape {tuple(t.shape)} here."
            )

    def fill(self, name: str, target: "Tensor", wanted: Region) -> None:
        """Put the box ``wanted`` of a tensor into ``target``, which has that box's shape."""
        for piece in self.pieces[name]:
            common = piece.region.common(wanted)
            if common is not None:
                _copy(piece, common, target[common.within(wanted)])

    def _check_pieces(self, name: str, pieces: list[Located]) -> None:
        """Raises `RunError` unless the pieces make one tensor: none missing, none twice."""
        kinds = {(p.dtype, p.region.whole) for p in pieces}
        have, need = sum(p.region.count for p in pieces), math.prod(pieces[0].region.whole)
        places = {p.region.offset for p in pieces}
        if len(kinds) > 1 or have != need or len(places) < len(pieces):
            raise RunError(
                f"{self.path}: the pieces of {name!r} in the {self.group} files don't make one tensor ({have} of {need} numbers). "
                f"{instead(self.path)}"
            )


def _copy(piece: Located, common: Region, target: "Tensor") -> None:
    """Read the rows of a piece that hold ``common``, and put that box into ``target``, which has its shape."""
    import torch

    shape = piece.region.shape
    rows = common.within(piece.region)[:1] or (slice(0, 1),)
    row_bytes = math.prod(shape[1:]) * item_size(piece.dtype)
    start = piece.start + rows[0].start * row_bytes
    count = rows[0].stop - rows[0].start
    if common.shape[1:] == shape[1:] and target.is_contiguous() and target.device.type == "cpu":
        piece.file.read_into(bytes_of(target), start)
        return
    raw = torch.empty(count * row_bytes, dtype=torch.uint8)
    piece.file.read_into(bytes_of(raw), start)
    slab = raw.view(dtypes()[piece.dtype]).reshape(count, *shape[1:])
    target.copy_(slab[(slice(None), *common.within(piece.region)[1:])].reshape(target.shape))


def _content(path: Path, manifest: Manifest, name: str) -> bytes:
    """A small file, verified."""
    if name not in manifest.files:
        raise RunError(f"{path}: its manifest lists no {name}. {instead(path)}")
    with CheckedFile(path, name, manifest.files[name]) as file:
        return file.read(0, file.entry.size)
