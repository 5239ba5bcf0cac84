"""``impl.cuda_graphs``: a micro-batch's forward and backward pass is recorded once per shape, and played back from then on.

A small model keeps its GPU waiting: each of some thousand kernels is launched by the host, and takes less time than its launch. A CUDA
graph launches all of them at once. What is recorded is one micro-batch, from its inputs to the gradients that it adds; clipping, the
check for bad gradients, the optimiser and the counting stay outside, so that they need to know nothing of it.

A recording plays on fixed memory. Inputs are copied into tensors of their own; gradients stay where they are from step to step, and
are zeroed instead of dropped; the sums that come out are overwritten by the next playback, and are to be used before. The first
`WARM_UP` micro-batches of a shape are run plainly, on the stream that records, and count like any other: kernels are compiled and
chosen in them, and the gradients come into being.

What asks the device for a value can't be recorded. Modules say so (``graph_breaks``), attention takes what needs no such value
(`slm.model.attention.scores.Request.graph`), and anything else fails where it is recorded, not silently.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from slm.config.errors import ConfigError, RunError
from slm.model.decoder import Decoder
from slm.train.compiling import graph_breaks
from slm.train.parallel.world import World

WARM_UP = 3
"""Micro-batches of a shape that are run plainly first."""
MOST = 8
"""Shapes that are recorded; each keeps memory. Further ones, of a long batch ramp perhaps, are run plainly."""

Inputs = tuple[Tensor, ...]
Sums = tuple[Tensor, Tensor]
"""Cross entropy and divergence of a micro-batch, without gradients."""
Pass = Callable[[Inputs, Tensor], Sums]
"""A micro-batch's forward and backward pass: inputs of the objective, and the factor on its loss."""


class Recorder(Protocol):
    """What can record the work of a device."""

    def plainly(self, work: Callable[[], Sums]) -> Sums:
        """Do the work where recordings are made and played."""

    def record(self, work: Callable[[], Sums]) -> tuple[Callable[[], None], Sums]:
        """Note the work down without doing it. Returns what does it, and where its results will be."""


def check_place(world: World) -> None:
    """Raise `ConfigError` where ``impl.cuda_graphs`` can't be, whatever the model."""
    if world.device.type != "cuda":
        raise ConfigError(
            f"impl.cuda_graphs needs a CUDA device, and this run is on {world.device.type}. Leave it out."
        )
    if world.size > 1:
        raise ConfigError(
            f"impl.cuda_graphs is for one process, and these are {world.size}: what they send each other isn't recorded. Leave it out; "
            "impl.compile=blocks saves launches as well."
        )


def check_model(decoder: Decoder) -> None:
    """Raise `ConfigError` if a model can't be recorded."""
    if broken := graph_breaks(decoder):
        name, why = next(iter(broken.items()))
        raise ConfigError(
            f"impl.cuda_graphs can't record this model: {name} can't be part of a graph ({why}). Leave it out."
        )


class Recorded:
    """Runs micro-batches, by playing back where there is a recording of their shape.

    ``recorder``: notes them down.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.seen: Counter[object] = Counter()
        self.recordings: dict[object, Recording] = {}

    def __call__(self, plain: Pass, inputs: Inputs, factor: Tensor, *, watched: bool = False) -> Sums:
        """Add the micro-batch's gradients.

        Args:
            plain: its forward and backward pass, always the same function.
            watched: by hooks, which a recording doesn't call; so it is run plainly.
        """
        shape = tuple((t.shape, t.dtype) for t in inputs)
        known = self.recordings.get(shape)
        if known is None and not watched and self.seen[shape] >= WARM_UP and len(self.recordings) < MOST:
            known = self.recordings[shape] = Recording(plain, inputs, factor, self.recorder)
        if known is None or watched:
            self.seen[shape] += 1
            return self.recorder.plainly(partial(plain, inputs, factor))
        return known.play(inputs, factor)


class Recording:
    """One shape's recording."""

    def __init__(self, plain: Pass, inputs: Inputs, factor: Tensor, recorder: Recorder) -> None:
        self.fixed = [t.clone() for t in (*inputs, factor)]
        *own, own_factor = self.fixed
        self.again, self.sums = recorder.record(partial(plain, tuple(own), own_factor))

    def play(self, inputs: Inputs, factor: Tensor) -> Sums:
        """Run it on other values. What it returns is good until the next time."""
        torch._foreach_copy_(self.fixed, [*inputs, factor])
        self.again()
        return self.sums


class CudaRecorder:
    """Records into CUDA graphs, which share one pool of memory: one plays at a time."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def _beside(self) -> AbstractContextManager[object]:
        self.stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self.stream)

    def plainly(self, work: Callable[[], Sums]) -> Sums:
        """On the recorder's stream: gradients and whatever libraries keep per stream are made there."""
        with self._beside():
            sums = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return sums

    def record(self, work: Callable[[], Sums]) -> tuple[Callable[[], None], Sums]:
        """As one graph. Raises `RunError` where the work asks the device for something."""
        graph, before, collecting = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), gc.isenabled()
        gc.collect()
        gc.disable()  # other objects of the device must not go meanwhile
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                sums = work()  # other threads, the writer of checkpoints among them, go on meanwhile
        except RuntimeError as error:
            raise _explained(error) from error
        finally:
            torch.cuda.set_stream(before)  # which torch doesn't do if ending the recording fails as well
            if collecting:
                gc.enable()
        return graph.replay, sums


def _explained(error: BaseException) -> BaseException:
    """What to raise: torch's last error says that recording failed, its first one why."""
    while error.__context__ is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    if isinstance(error, torch.OutOfMemoryError):
        return error
    return RunError(
        "impl.cuda_graphs: a micro-batch's forward and backward pass can't be recorded; something in it waits for the device. Leave "
        f"impl.cuda_graphs out: the checkpoints go on without it. torch says: {(str(error) or repr(error)).splitlines()[0]}"
    )
