"""``impl.compile``: torch.compile on each block, or on the whole step.

**Blocks** is what most runs want. All blocks that are built alike share one compiled graph: a 30-layer model compiles one block, in
seconds instead of minutes. That works since a block is a function (`slm.model.residual.BlockBase`) and takes its layer's number
nowhere; `tests/train/test_compiling.py` counts the graphs. A graph is whole (``fullgraph``) or the step fails: torch would otherwise
fall back to plain execution piece by piece, and one would pay for a compiler without having one. A module that can't be one graph says
so itself, with ``graph_breaks = "why"``.

Only training steps are compiled. Evaluation and decoding have other shapes, and run plainly.

The order is: build, `impl.recompute`, compile, shard. The forward method of the block is replaced, not ``__call__``, so that hooks (FSDP
gathers weights in them) run outside of the graph.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch._dynamo.config
import torch._dynamo.exc
from torch import Tensor, nn

from slm.config.errors import ConfigError, RunError
from slm.model.decoder import Decoder
from slm.model.sequence import Handed, Here
from slm.train.recomputing import BlockForward, blocks_of, needed, runs_again

SPARE_GRAPHS = 8
"""Per block: for another number of rows in the last micro-batch, for another precision, for layers that differ in a number."""


def apply(module: nn.Module, decoder: Decoder, how: Literal["none", "blocks", "whole"]) -> nn.Module:
    """``module``, the forward pass and loss around ``decoder``, compiled as ``impl.compile`` says; what it returns is called instead."""
    if how == "blocks":
        apply_blocks(decoder)
    return compiled(module, decoder) if how == "whole" else module


def apply_blocks(decoder: Decoder, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the decoder's blocks in place; names, parameters and the tree of modules stay as they are.

    Args:
        decoder: with `impl.recompute` applied already, and not sharded yet.
        backend: torch.compile's.

    Raises:
        ConfigError: a block is to be run again and has a module that can't be in one graph.
    """
    blocks = blocks_of(decoder)
    check_recompute(decoder)
    allow_graphs(len(blocks))
    made: dict[tuple[Any, bool], BlockForward] = {}
    for block in blocks:
        plain, whole = block.forward.__func__, not graph_breaks(block)  # type: ignore[attr-defined]
        if (plain, whole) not in made:  # one function for all, which is why one graph serves all
            made[plain, whole] = _in_training(
                plain, torch.compile(plain, backend=backend, fullgraph=whole, dynamic=False)
            )
        block.forward = types.MethodType(made[plain, whole], block)


def compiled(module: nn.Module, decoder: Decoder) -> nn.Module:
    """The whole forward pass as one graph where its modules allow it. Code for shapes that haven't been seen is made when they come.

    Raises:
        ConfigError: as `apply_blocks`.
    """
    check_recompute(decoder)
    allow_graphs(len(blocks_of(decoder)))
    return torch.compile(module, fullgraph=not graph_breaks(decoder), dynamic=False)  # type: ignore[return-value]


def graph_breaks(module: nn.Module) -> dict[str, str]:
    """Module classes inside that can't be part of one graph, and why."""
    found = {type(m).__name__: getattr(m, "graph_breaks", "") for m in module.modules()}
    return {name: why for name, why in found.items() if why}


def check_recompute(decoder: Decoder) -> None:
    """Raise `ConfigError` where torch would silently not compile: it never looks into a checkpoint that isn't all in one graph."""
    for block in blocks_of(decoder):
        if runs_again(block) and (broken := graph_breaks(block)):
            name, why = next(iter(broken.items()))
            raise ConfigError(
                f"impl.compile can't be combined with impl.recompute here: {name} can't be part of one graph ({why}), and what is run again "
                "is compiled as one graph or not at all. Set impl.compile=none, or impl.recompute=none or budget."
            )


def first_step_note(seconds: float) -> str:
    """What the trainer says after its first step, whose time is the compiler's more than the step's."""
    return f"The first step took {seconds:.1f} s, most of it compiling (impl.compile); later steps and runs on this machine reuse the code."


def allow_graphs(blocks: int) -> None:
    """Raise torch's limit of graphs per function, 8, beyond which it would run everything plainly: OpenELM's layers all differ."""
    config, most = torch._dynamo.config, blocks * SPARE_GRAPHS
    config.recompile_limit = max(config.recompile_limit, most)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, most)


def _in_training(plain: BlockForward, fast: BlockForward) -> BlockForward:
    """``fast`` where a backward pass follows in training mode, ``plain`` elsewhere."""

    def forward(block: nn.Module, x_BTD: Tensor, here: Here) -> tuple[Tensor, Handed]:
        if not (block.training and needed(here)):
            return plain(block, x_BTD, here)
        try:
            return fast(block, x_BTD, here)
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as error:
            raise RunError(
                f"impl.compile=blocks: a {type(block).__name__} of this model can't be compiled as one graph. Set impl.compile=none, or write "
                f"graph_breaks = 'why' into the module that breaks it; then the pieces around the break are compiled. torch says: {error}"
            ) from error

    return forward
