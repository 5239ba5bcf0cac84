"""Optimisers on sharded parameters.

FSDP2 gives each process a slice of every tensor: a `DTensor`, whose local part is a plain tensor that shares its memory. What
works element by element works on the local parts. What needs a matrix whole (Muon, SOAP) sends it to one process, its owner:

    rank 0 has rows 0-3 of A B C D        all-to-all        rank 0 has A C whole
    rank 1 has rows 4-7 of A B C D      ------------->      rank 1 has B D whole

The owners do the work on theirs, all at once, and a second all-to-all takes the results back. Each matrix is computed once, by one
process, and every process sends and receives about what a reduce-scatter of these matrices costs. A stack of matrices (experts) that
is cut between matrices needs none of this. In HSDP the replicas each do the same work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def local(t: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself if it isn't sharded."""
    return t.to_local() if hasattr(t, "to_local") else t  # type: ignore[operator, no-any-return]


def whole(t: Tensor) -> Tensor:
    """A tensor put together from what all processes have of it (all of them ask); the tensor itself if it isn't sharded."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t  # type: ignore[operator, no-any-return]


@dataclass(frozen=True)
class Split:
    """A tensor dimension (negative: from the end) that is cut among the processes of a group."""

    dim: int
    group: Any
    rank: int
    size: int

    def extent(self, whole: int, rank: int) -> int:
        """How many of ``whole`` rows ``rank`` has: equal chunks, the last ones smaller or empty."""
        chunk = -(-whole // self.size)
        return max(0, min(chunk, whole - rank * chunk))


def split_of(t: Tensor) -> Split | None:
    """Along which dimension a tensor is sharded; None if it isn't.

    Raises:
        NotImplementedError: it is sharded in two ways at once, or holds pending sums.
    """
    if not hasattr(t, "to_local"):
        return None
    cuts = [(i, place) for i, place in enumerate(t.placements) if not place.is_replicate()]  # type: ignore[attr-defined]
    if not cuts:
        return None
    if len(cuts) > 1 or type(cuts[0][1]).__name__ != "Shard":
        raise NotImplementedError(f"optimisers take parameters that are sharded along one dimension, not {cuts}")
    (mesh_dim, place), mesh = cuts[0], t.device_mesh  # type: ignore[attr-defined]
    return Split(place.dim - t.ndim, mesh.get_group(mesh_dim), mesh.get_local_rank(mesh_dim), mesh.size(mesh_dim))


def split_of_matrices(t: Tensor) -> Split | None:
    """As `split_of`, but None also for a stack that is cut between its matrices."""
    split = split_of(t)
    return None if split is None or split.dim < -2 else split


def zeros_beside(p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of as many dimensions as ``p`` and at least fp32, sharded as ``p`` is (a cut of the last dimension becomes one of rows)."""
    split, dtype = split_of(p), torch.promote_types(p.dtype, torch.float32)
    if split is None:
        return torch.zeros(shape, dtype=dtype, device=p.device)
    from torch.distributed.tensor import Shard, zeros

    dim = min(split.dim, -2) + len(shape)
    places = [Shard(dim) if not place.is_replicate() else place for place in p.placements]  # type: ignore[attr-defined]
    return zeros(*shape, dtype=dtype, device_mesh=p.device_mesh, placements=places)  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True)
class Exchange:
    """Takes the pieces of ``count`` matrices of (rows, columns) to their owners and back. Matrix i belongs to rank
    (i + first) mod size; ``first`` spreads odd ones."""

    split: Split
    rows: int
    columns: int
    count: int
    first: int = 0

    @cached_property
    def owned(self) -> list[list[int]]:
        """Indices of the matrices of each rank."""
        size = self.split.size
        return [[i for i in range(self.count) if (i + self.first) % size == rank] for rank in range(size)]

    @property
    def mine(self) -> list[int]:
        return self.owned[self.split.rank]

    def extent(self, rank: int) -> tuple[int, int]:
        """Shape of a rank's piece."""
        if self.split.dim == -2:
            return self.split.extent(self.rows, rank), self.columns
        return self.rows, self.split.extent(self.columns, rank)

    def gather(self, pieces: list[Tensor]) -> Tensor:
        """This process's pieces of all matrices -> (mine, rows, columns), its own matrices whole."""
        send = torch.cat([pieces[i].reshape(-1) for theirs in self.owned for i in theirs])
        counts = [len(self.mine) * r * c for r, c in map(self.extent, range(self.split.size))]
        received = self._swap(send, counts, [len(theirs) * pieces[0].numel() for theirs in self.owned])
        parts = [part.view(len(self.mine), *self.extent(r)) for r, part in enumerate(received.split(counts))]
        return torch.cat(parts, self.split.dim)

    def scatter(self, whole: Tensor) -> list[Tensor]:
        """(mine, rows, columns) -> this process's pieces of all matrices."""
        extents = [self.extent(r) for r in range(self.split.size)]
        cut = 0 if self.split.dim == -2 else 1
        parts = whole.split([e[cut] for e in extents], self.split.dim)
        send = torch.cat([part.reshape(-1) for part in parts])
        rows, columns = extents[self.split.rank]
        counts = [len(theirs) * rows * columns for theirs in self.owned]
        received = self._swap(send, counts, [part.numel() for part in parts])
        pieces: list[Tensor] = [received] * self.count
        for theirs, part in zip(self.owned, received.split(counts), strict=True):
            for i, piece in zip(theirs, part.view(len(theirs), rows, columns), strict=True):
                pieces[i] = piece
        return pieces

    def _swap(self, send: Tensor, receive_counts: list[int], send_counts: list[int]) -> Tensor:
        received = send.new_empty(sum(receive_counts))
        torch.distributed.all_to_all_single(received, send, receive_counts, send_counts, group=self.split.group)
        return received


def sum_over(split: Split | None, values: list[Tensor]) -> list[Tensor]:
    """The sums over a split's processes of some small tensors, in one message."""
    if split is None or not values:
        return values
    flat = torch.cat([v.reshape(-1) for v in values])
    torch.distributed.all_reduce(flat, group=split.group)
    return [part.view(v.shape) for v, part in zip(values, flat.split([v.numel() for v in values]), strict=True)]
