"""Which part of a tensor this process holds.

FSDP2 cuts tensors into equal chunks of rows, the last ones smaller or empty; HSDP has several replicas of such a row of shards; DDP has
whole tensors everywhere. What a checkpoint needs to know of all this is the offset and the shape of each process's part, and which
process of several equal ones writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A box within a tensor of shape ``whole``: from ``offset``, of ``shape``."""

    whole: Shape
    offset: Shape
    shape: Shape

    @property
    def count(self) -> int:
        """Numbers in the box."""
        return math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        return self.shape == self.whole

    def common(self, other: "Region") -> "Region | None":
        """The box that two boxes share; None if they share nothing."""
        low = tuple(map(max, self.offset, other.offset))
        ends = (tuple(o + n for o, n in zip(r.offset, r.shape, strict=True)) for r in (self, other))
        shape = tuple(h - a for h, a in zip(map(min, *ends), low, strict=True))
        return None if any(n <= 0 for n in shape) else Region(self.whole, low, shape)

    def within(self, outer: "Region") -> tuple[slice, ...]:
        """Slices that take this box out of a tensor that holds ``outer``."""
        starts = [a - b for a, b in zip(self.offset, outer.offset, strict=True)]
        return tuple(slice(s, s + n) for s, n in zip(starts, self.shape, strict=True))


@dataclass(frozen=True)
class Share:
    """This process's part of a tensor, and whether it is the one to write it."""

    region: Region
    tensor: "Tensor"
    writes: bool


def share_of(name: str, t: "Tensor", rank: int) -> Share | None:
    """This process's part; None if it has none. A plain tensor is taken to be the same everywhere: rank 0 writes it.

    Raises:
        NotImplementedError: the tensor holds pending sums, or is cut in a way that a box doesn't describe.
    """
    t = t.detach()
    whole = tuple(t.shape)
    if not hasattr(t, "to_local"):
        return Share(Region(whole, (0,) * len(whole), whole), t, rank == 0)
    coordinate = t.device_mesh.get_coordinate()  # type: ignore[attr-defined]
    if coordinate is None:
        return None  # a mesh of other processes
    local: Tensor = t.to_local()  # type: ignore[operator]
    offset, shape, first = list((0,) * len(whole)), list(whole), True
    for i, place in enumerate(t.placements):  # type: ignore[attr-defined]
        if place.is_replicate():
            first = first and coordinate[i] == 0
        elif type(place).__name__ == "Shard":
            _cut(offset, shape, place.dim, coordinate[i], t.device_mesh.size(i))  # type: ignore[attr-defined]
        else:
            raise NotImplementedError(f"{name}: checkpoints take tensors that are sharded or replicated, not {place}")
    if tuple(shape) != tuple(local.shape):
        raise NotImplementedError(
            f"{name}: this process holds {tuple(local.shape)} of it, equal chunks would be {shape}"
        )
    region = Region(whole, tuple(offset), tuple(shape))
    nothing = not region.count and not (region.is_whole and not any(coordinate))
    return Share(region, local, first and not nothing)


def _cut(offset: list[int], shape: list[int], dim: int, rank: int, size: int) -> None:
    """Narrow a box to the chunk of ``rank``, as ``torch.chunk`` cuts."""
    chunk = -(-shape[dim] // size)
    start = min(rank * chunk, shape[dim])
    offset[dim] += start
    shape[dim] = min(chunk, shape[dim] - start)


def bytes_of(t: "Tensor") -> memoryview:
    """The memory of a contiguous CPU tensor, without a copy."""
    import torch

    flat: Any = t.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
