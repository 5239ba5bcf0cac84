"""``impl.recompute``: which activations are kept for the backward pass, and which are computed again.

The backward pass needs what the forward pass computed. Keeping all of it costs tens of numbers per token, layer and unit of width;
computing some of it again costs time instead, at most a third forward pass. The result is the same to the last bit. How a block
is run again is in `recomputing`; nothing here needs torch until `apply`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import pydantic

from slm.config.registry import Part, Registry

if TYPE_CHECKING:
    from slm.model.decoder import Decoder


class RecomputePart(Part):
    """What is computed again in the backward pass."""

    needs_compile: ClassVar[bool] = False
    """Only the compiler can do it: `Impl` refuses it without ``impl.compile``."""

    @property
    def period(self) -> int:
        """After how many blocks it does the same again."""
        return 1

    def apply(self, decoder: "Decoder") -> None:
        """Make the decoder's blocks forget. Once, after it is built and before it is compiled or sharded.

        Names, parameters and the tree of modules stay as they are; passes without gradients are not touched.

        Raises:
            ValueError: it has been applied to this decoder already.
        """
        from slm.train import recomputing

        recomputing.set_budget(1.0)


recompute = Registry("recompute", RecomputePart)
RecomputeSlot = Annotated[RecomputePart, recompute.field()]


@recompute.register("none")
class NoRecompute(RecomputePart):
    """Keep everything: the fastest, where it fits."""


@recompute.register("full", paper="Chen et al. 2016, arXiv 1604.06174")
class Full(RecomputePart):
    """Keep what enters each block and run the block again: the least memory, about a third more time."""

    def apply(self, decoder: "Decoder") -> None:
        from slm.train import recomputing

        super().apply(decoder)
        for block in recomputing.blocks_of(decoder):
            recomputing.run_again(block, recomputing.everything)


@recompute.register("every", paper="Chen et al. 2016, arXiv 1604.06174")
class Every(RecomputePart):
    """Run every k-th stored block again and keep all of the others: the share of ``full`` that it takes to fit."""

    k: int = pydantic.Field(2, gt=0)
    """Blocks 0, k, 2k, ... are run again; 1 is ``full``. Blocks of multi-token prediction count on behind the others."""

    @property
    def period(self) -> int:
        return self.k

    def apply(self, decoder: "Decoder") -> None:
        from slm.train import recomputing

        super().apply(decoder)
        for block in recomputing.blocks_of(decoder)[:: self.k]:
            recomputing.run_again(block, recomputing.everything)


@recompute.register("ops", paper="Korthikanti et al. 2022, arXiv 2205.05198")
class Ops(RecomputePart):
    """Keep the outputs of weight matrices and of fused attention, and compute the cheap rest again: norms, rotations, activations,
    masks, and the scores of attention that isn't fused."""

    keep_matmuls: float = pydantic.Field(1.0, ge=0, le=1)
    """Share of the weight matrices' outputs that is kept, evenly spread over a block: 0.5 is every second. Fused attention is kept
    at any share."""

    def apply(self, decoder: "Decoder") -> None:
        from slm.train import recomputing

        super().apply(decoder)
        rerun = recomputing.all_but_products(self.keep_matmuls)
        for block in recomputing.blocks_of(decoder):
            recomputing.run_again(block, rerun)


@recompute.register("budget")
class Budget(RecomputePart):
    """Let the compiler choose what to keep within a share of the activations; needs ``impl.compile``."""

    needs_compile: ClassVar[bool] = True
    share: float = pydantic.Field(0.5, ge=0, le=1)
    """Of the bytes that a compiled graph would keep by itself. 1 is the compiler's own choice, 0 about what ``full`` keeps."""

    def apply(self, decoder: "Decoder") -> None:
        from slm.train import recomputing

        recomputing.set_budget(self.share)
