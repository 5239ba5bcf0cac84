"""Training memory of one process: the arithmetic. What a step holds is counted from the model itself (`slm.train.footprint`).

Memory is highest at one of two moments of a step:

- on the way **back**, when the activations are there, and gradients begin to be;
- in the optimiser's **step**, when the gradients are all there, and the update is being made.

Weights and optimiser state are there always. The parts below are those of the higher moment, so they add up to the peak. Once a
checkpoint was written in the background, its copy of both stays in the host's memory, which is the device's own unless that is a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 4
"""Of a weight, and of its gradient: fp32, whatever the products are computed in."""
FRAMEWORK = {"cuda": 1 << 30, "mps": 1 << 29, "cpu": 28 << 20}
"""An allowance, by type of device, for what is neither weights nor activations: on a GPU the context and loaded kernels (about half of a
GiB), the workspaces of the matrix libraries, and what an allocator can't use; on a CPU the buffers of those libraries."""


@dataclass(frozen=True)
class StepMemory:
    """What one micro-batch and one optimiser step hold, in bytes."""

    params: int
    """Stored parameters (a number, not bytes)."""
    optimizer: int
    """State of the optimiser."""
    activations: int
    """At the highest moment of forward and backward: activations and what is being worked on."""
    gradients: int
    """There at that moment, of this micro-batch."""
    step_workspace: int
    """What the optimiser's step needs for a moment."""
    accumulates: bool
    """A step has several micro-batches: at the highest moment the gradients of the earlier ones are there as well."""
    exchange: int = 0
    """What processes have in hand for each other at the highest moment of forward and backward: weights that were put together,
    gradients that are sent."""
    exchange_stays: bool = False
    """That is there in the optimiser's step, too."""
    copied: int = 0
    """Of weights and optimiser state, for checkpoints to be written from."""
    teacher: int = 0
    """Weights of a teacher, whole in every process, and what it says of a micro-batch."""


def training_bytes(step: StepMemory, *, device: str, shards: int = 1) -> dict[str, int | str]:
    """Bytes by kind at the peak, their sum ``per_rank_bytes``, and ``peak``: at which moment that is; ``host_bytes``: on a GPU, what is
    copied to the host besides.

    Args:
        device: its type.
        shards: processes among which weights, gradients and optimiser state are divided. Gradients of earlier micro-batches are not
            divided: they stay whole until the last one's are averaged with them, so that processes talk once a step.
    """
    weights, optimizer = -(-BYTES * step.params // shards), -(-step.optimizer // shards)
    gradients = BYTES * step.params if step.accumulates else -(-step.gradients // shards)
    kept = step.exchange if step.exchange_stays else 0
    moments = {
        "backward": {"gradients": gradients, "exchange": step.exchange, "activations": step.activations},
        "step": {"gradients": weights, "exchange": kept, "activations": -(-step.step_workspace // shards)},
    }
    peak = max(moments, key=lambda moment: sum(moments[moment].values()))
    copy = -(-step.copied // shards)
    parts = {
        "weights": weights,
        "optimizer": optimizer,
        "teacher": step.teacher,
        **moments[peak],
        "checkpoint_copy": copy if device != "cuda" else 0,
        "framework": FRAMEWORK[device],
    }
    host = copy - parts["checkpoint_copy"]
    return {**parts, "per_rank_bytes": sum(parts.values()), "host_bytes": host, "peak": peak}
