"""The copy of a state that is written while training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Staging:
    """Host memory for the copies, kept from save to save: touching fresh pages takes longer than the copy itself."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Tensor] = {}
        self._event: torch.cuda.Event | None = None

    def copy(self, group: str, name: str, t: "Tensor") -> "Tensor":
        """A copy on the host. From a GPU it is complete when `recorded`'s event is."""
        import torch

        buffer = self._held.get((group, name))
        if buffer is None or (buffer.shape, buffer.dtype) != (t.shape, t.dtype):
            buffer = torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda)
            self._held[group, name] = buffer
        buffer.copy_(t, non_blocking=t.is_cuda)
        if t.is_cuda:
            self._event = self._event or torch.cuda.Event()
        return buffer

    def recorded(self) -> "torch.cuda.Event | None":
        """Marks the copies so far on the GPU's stream, behind which later steps may change what was copied."""
        if self._event is not None:
            self._event.record()
        return self._event
