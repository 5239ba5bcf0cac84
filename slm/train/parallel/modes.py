"""How a model is spread over the processes: parts of the slot ``impl.parallel``, applied from outside the model.

``ddp`` keeps everything in every process and averages gradients. ``fsdp`` (FSDP2, ZeRO-3: Rajbhandari et al. 2019, arXiv 1910.02054;
Zhao et al. 2023, arXiv 2304.11277) cuts weights, gradients and optimiser state into as many pieces as there are processes; a block is
put together when it is needed. ``hsdp`` does so within groups, a node usually, and averages between them. Tensor, pipeline and context
parallelism are left out on purpose: below 5B parameters they buy little.

One process alone is spread over nothing, whatever the part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic

from slm.config.errors import ConfigError
from slm.config.registry import Part, Registry

if TYPE_CHECKING:
    from torch import nn

    from slm.model.decoder import Decoder
    from slm.train.parallel.world import World


class Spread:
    """A module that is spread over the processes. Call ``module`` for a forward pass, in training and in evaluation."""

    def __init__(self, module: "nn.Module") -> None:
        self.module = module

    def accumulating(self) -> AbstractContextManager[None]:
        """Within it, backward passes keep their gradients to themselves: another micro-batch follows."""
        return nullcontext()

    def evaluated(self) -> None:
        """To be called after forward passes without a backward one."""


class ParallelPart(Part):
    """How a run is spread over several processes."""

    sharded: ClassVar[bool] = False
    """Whether weights are cut among processes."""

    @property
    def rounds_weights(self) -> bool:
        """Whether weights are bf16 where they are used."""
        return False

    def spread(self, module: "nn.Module", decoder: "Decoder", world: "World") -> Spread:
        """Spread ``module``, which holds ``decoder`` and ends in a loss. Parameters may become sharded: optimisers come after."""
        return Spread(module) if world.size == 1 else self._spread(module, decoder, world)

    def _spread(self, module: "nn.Module", decoder: "Decoder", world: "World") -> Spread:
        raise NotImplementedError

    def shards(self, size: int) -> int:
        """Into how many pieces weights, gradients and optimiser state are cut among ``size`` processes."""
        return 1

    def exchange_bytes(self, root: int, units: Sequence[int], *, accumulates: bool) -> int:
        """Bytes that processes have in hand for each other at the highest moment of a backward pass, beside shards and gradients.

        Args:
            root: parameters outside of `units_of`, such as the embedding.
            units: parameters of each unit.
            accumulates: whole gradients of earlier micro-batches are there already, and are the caller's to count.
        """
        return 4 * (root + sum(units))  # DDP's buckets, beside the gradients that are copied into them


parallel = Registry("parallel", ParallelPart)
ParallelSlot = Annotated[ParallelPart, parallel.field()]


class Replicated(Spread):
    """In DDP."""

    def accumulating(self) -> AbstractContextManager[None]:
        return self.module.no_sync()  # type: ignore[operator, no-any-return]


@parallel.register("ddp", paper="Li et al. 2020, arXiv 2006.15704")
class Replicate(ParallelPart):
    """The whole model in every process; gradients are averaged."""

    def _spread(self, module: "nn.Module", decoder: "Decoder", world: "World") -> Spread:
        from torch.nn.parallel import DistributedDataParallel

        ids = [world.device.index] if world.device.type == "cuda" else None
        return Replicated(DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False))


class Sharded(Spread):
    """In FSDP2: the units, each with hooks of its own, and the root that holds what is left."""

    def __init__(self, module: "nn.Module", units: "list[nn.Module]") -> None:
        super().__init__(module)
        self.units = [*units, module]

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        root: Any = self.module
        root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            root.set_requires_gradient_sync(True)

    def evaluated(self) -> None:
        for unit in self.units:  # a backward pass would have done it
            unit.reshard()  # type: ignore[operator]


class ShardedPart(ParallelPart):
    """What sharded parts share."""

    sharded: ClassVar[bool] = True
    reshard: bool = True
    """Cut a block again after its forward pass, and put it together anew for the backward pass: less memory, more traffic."""
    gather: Literal["fp32", "bf16"] = "fp32"
    """What weights are sent as. bf16: half the traffic, and where the arithmetic is bf16, matrices come out the same; gains, biases and
    embeddings are rounded, too. Gradients are always averaged in fp32."""

    def mesh(self, world: "World") -> Any:
        """The processes as a device mesh; its last dimension is the one that is sharded along."""
        raise NotImplementedError

    @property
    def rounds_weights(self) -> bool:
        return self.gather == "bf16"

    def exchange_bytes(self, root: int, units: Sequence[int], *, accumulates: bool) -> int:
        """The root's weights, from the first to the last moment, and of the units two at a time, one at work and one that is on its
        way, or without ``reshard`` all; with the gradients of two units, which are sent as fp32."""
        weight, gradient, most = (2 if self.gather == "bf16" else 4), (0 if accumulates else 4), max(units, default=0)
        return weight * (root + (2 * most if self.reshard else sum(units))) + gradient * 2 * most

    def _spread(self, module: "nn.Module", decoder: "Decoder", world: "World") -> Spread:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        dtype = torch.bfloat16 if self.gather == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh, units = self.mesh(world), units_of(decoder)
        for unit in units:
            fully_shard(unit, mesh=mesh, reshard_after_forward=self.reshard, mp_policy=policy)
        fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
        return Sharded(module, units)


@parallel.register("fsdp", paper="Zhao et al. 2023, arXiv 2304.11277; Rajbhandari et al. 2019 (ZeRO), arXiv 1910.02054")
class FullyShard(ShardedPart):
    """Weights, gradients and optimiser state cut among all processes."""

    def mesh(self, world: "World") -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))

    def shards(self, size: int) -> int:
        return size


@parallel.register("hsdp", paper="Zhao et al. 2023, arXiv 2304.11277")
class HybridShard(ShardedPart):
    """Cut within groups of processes, the same in each group; gradients are averaged between groups."""

    group: int | None = pydantic.Field(None, gt=0)
    """Processes of a group; None: those of a node."""

    def mesh(self, world: "World") -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        size = self.shards(world.size)
        return init_device_mesh(world.device.type, (world.size // size, size), mesh_dim_names=("replicate", "shard"))

    def shards(self, size: int) -> int:
        group = self.group or int(os.environ.get("LOCAL_WORLD_SIZE", size))
        if size % group:
            raise ConfigError(f"impl.parallel.group={group}: {size} processes can't be divided into groups of {group}.")
        return group


@parallel.register("auto")
class Automatic(ParallelPart):
    """ddp, which is the fastest as long as it fits: about 16 bytes per parameter on each device, and the activations."""

    def _spread(self, module: "nn.Module", decoder: "Decoder", world: "World") -> Spread:
        return Replicate()._spread(module, decoder, world)


def units_of(decoder: "Decoder") -> "list[nn.Module]":
    """What is put together at a time, inner units first: modules that several blocks share, blocks, further depths."""
    blocks = [*decoder.blocks, *(decoder.further or [])]
    owners: dict[int, list[nn.Module]] = {}
    seen: dict[int, set[int]] = {}
    for number, block in enumerate(blocks):
        for child in block.children():
            owners.setdefault(id(child), [child])
            seen.setdefault(id(child), set()).add(number)
    shared = [owners[key][0] for key, users in seen.items() if len(users) > 1]
    return [*shared, *blocks]
