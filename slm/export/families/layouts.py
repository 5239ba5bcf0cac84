"""How one stored tensor holds one or several of ours. Every layout is a rearrangement: split and join lose no bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, ...]]


class Layout:
    """Ours one after the other along the first dimension."""

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        """Our tensors, of ``shapes``, out of theirs."""
        return list(theirs.split([shape[0] for shape in shapes]))

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        """Theirs out of ours."""
        return torch.cat(list(ours)) if len(ours) > 1 else ours[0]


ROWS = Layout()


@dataclass(frozen=True)
class PerHead(Layout):
    """For each head in turn, its rows of each of ours: fused q, k, v of GPT-NeoX and BLOOM."""

    heads: int

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        rows = [shape[0] // self.heads for shape in shapes]
        per_head = theirs.reshape(self.heads, sum(rows), *theirs.shape[1:])
        return [piece.reshape(shape) for piece, shape in zip(per_head.split(rows, 1), shapes, strict=True)]

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        per_head = torch.cat([t.reshape(self.heads, -1, *t.shape[1:]) for t in ours], 1)
        return per_head.flatten(0, 1)


@dataclass(frozen=True)
class Each(Layout):
    """Apart by ``outer``, and then each of ours by a layout of its own."""

    outer: Layout
    inner: tuple[Layout, ...]

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        pieces = zip(self.inner, self.outer.split(theirs, shapes), shapes, strict=True)
        return [layout.split(piece, [shape])[0] for layout, piece, shape in pieces]

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return self.outer.join([layout.join([t]) for layout, t in zip(self.inner, ours, strict=True)])


@dataclass(frozen=True)
class Transposed(Layout):
    """Matrices stored (in, out), as GPT-2's Conv1D; vectors as they are."""

    inner: Layout = ROWS

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return self.inner.split(theirs.mT if theirs.ndim == 2 else theirs, shapes)

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        joined = self.inner.join(ours)
        return joined.mT if joined.ndim == 2 else joined


@dataclass(frozen=True)
class Interleaved(Layout):
    """Heads of ``width`` rows whose numbers ``start``..``start + rotated`` are rotated in neighbouring pairs (2i, 2i + 1);
    ours are rotated in pairs (i, i + rotated / 2). For q and k of models with interleaved RoPE; scores don't change."""

    width: int
    rotated: int
    start: int = 0
    last: bool = False
    """The heads' numbers lie along the last dimension (gains per head) instead of the first (rows of a projection)."""

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        pairs = torch.arange(self.start, self.start + self.rotated)
        return [self._reorder(theirs, pairs, torch.cat((pairs[0::2], pairs[1::2])))]

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        pairs = torch.arange(self.start, self.start + self.rotated)
        return self._reorder(ours[0], pairs, pairs.view(2, -1).T.flatten())

    def _reorder(self, x: Tensor, pairs: Tensor, into: Tensor) -> Tensor:
        order = torch.arange(self.width)
        order[pairs] = into
        if self.last:
            return x[..., order]
        return x.reshape(-1, self.width, *x.shape[1:])[:, order].reshape(x.shape)


@dataclass(frozen=True)
class SwappedHalves(Layout):
    """Heads of ``width`` rows with their halves exchanged: models that rotate the other way round (nanochat)."""

    width: int

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return [self._swap(theirs)]

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return self._swap(ours[0])

    def _swap(self, x: Tensor) -> Tensor:
        halves = x.reshape(-1, 2, self.width // 2, *x.shape[1:])
        return halves.flip(1).reshape(x.shape)


@dataclass(frozen=True)
class Reshaped(Layout):
    """The same numbers in another shape: a convolution's (channels, 1, taps)."""

    shape: tuple[int, ...]

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return [theirs.reshape(shapes[0])]

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return ours[0].reshape(self.shape)


class TransposedStack(Layout):
    """A stack of matrices stored (n, in, out)."""

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return [theirs.mT]

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return ours[0].mT
