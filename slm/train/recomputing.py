"""How a block is run again in the backward pass: torch's non-reentrant checkpoint around its forward.

A block is a function of what it is given (`slm.model.residual.BlockBase`), so running it again finds the same inputs. There is no
dropout, so no random state has to be kept. The forward method of the instance is replaced, not its class and not its place in the
tree: names stay, hooks on the block (FSDP gathers weights in them) run outside of it, and a compiler sees what is run again.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from slm.model.decoder import Decoder
from slm.model.sequence import Handed, Here

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten._scaled_mm.default)
"""Products with weights: the most time per number kept. Products within attention (bmm) are as large as the scores."""
FUSED_ATTENTION = (
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
)
"""Their outputs are as small as the stream and cost T times as much."""

BlockForward = Callable[..., tuple[Tensor, Handed]]
"""``forward(block, x_BTD, here)``."""


def blocks_of(decoder: Decoder) -> list[nn.Module]:
    """Every stored block once, those of multi-token prediction last."""
    return [*decoder.blocks, *(depth.block for depth in decoder.further or ())]  # type: ignore[misc]


def run_again(block: nn.Module, rerun: BlockForward) -> None:
    """Let training run the block's forward through ``rerun``. Raises ValueError the second time.

    All blocks share the one function: whatever compiles it sees one function, not one per block.
    """
    if runs_again(block):
        raise ValueError("the forward of this block is replaced already: recompute once, and before compiling")
    block.forward = types.MethodType(rerun, block)


def runs_again(block: nn.Module) -> bool:
    """Whether the block's forward is replaced."""
    return "forward" in vars(block)


def everything(block: nn.Module, x_BTD: Tensor, here: Here) -> tuple[Tensor, Handed]:
    """The block's own forward, of which only the inputs are kept."""
    plain = type(block).forward
    if not needed(here):
        return plain(block, x_BTD, here)  # type: ignore[no-any-return]
    return checkpoint(plain, block, x_BTD, here, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def all_but_products(share: float) -> BlockForward:
    """The block's own forward, of which fused attention and a ``share`` of the weights' products are kept."""
    contexts = partial(_contexts, share)

    def rerun(block: nn.Module, x_BTD: Tensor, here: Here) -> tuple[Tensor, Handed]:
        plain = type(block).forward
        if not needed(here):
            return plain(block, x_BTD, here)  # type: ignore[no-any-return]
        return checkpoint(  # type: ignore[no-any-return]
            plain, block, x_BTD, here, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )

    return rerun


def needed(here: Here) -> bool:
    """Whether a backward pass follows. Decoding remembers, and what was remembered twice would be wrong."""
    return torch.is_grad_enabled() and here.memory is None


class _Keep:
    """Which operation's outputs are kept: asked for each in turn, as torch wants it."""

    def __init__(self, share: float) -> None:
        self.share, self.products = share, {False: 0, True: 0}

    def __call__(self, ctx: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = op in FUSED_ATTENTION
        if op in PRODUCTS:
            n = self.products[ctx.is_recompute] = self.products[ctx.is_recompute] + 1
            kept = int(n * self.share) > int((n - 1) * self.share)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts(share: float) -> tuple[Any, Any]:
    """For the first run and for the second. Made anew for each run of a block, since it counts."""
    return create_selective_checkpoint_contexts(_Keep(share))  # type: ignore[no-any-return]


def set_budget(share: float) -> None:
    """Share of the activations that graphs compiled from now on may keep; of the whole process, 1 is torch's default."""
    torch._functorch.config.activation_memory_budget = share
