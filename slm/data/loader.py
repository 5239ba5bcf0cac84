"""The loader: tensors of this process's share of every global batch.

Global batch b is rows [b G, (b+1) G) of the plan; rank r of w takes the r-th of w contiguous slices. The
state is ``{plan, next_row}`` and nothing else, so a run resumes at any world size.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slm.config.errors import ConfigError, RunError
from slm.data.plan import Plan


@dataclass(frozen=True)
class Batch:
    """Rows of one process, int64 of shape (rows, seq_len). ``first_row``: number of the global batch's first row."""

    tokens_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    docs_BT: Tensor
    first_row: int

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        tokens, targets, positions, docs = (
            t.to(device, non_blocking=True) for t in (self.tokens_BT, self.targets_BT, self.positions_BT, self.docs_BT)
        )
        return Batch(tokens, targets, positions, docs, self.first_row)

    def split(self, rows: int) -> Iterator["Batch"]:
        """Micro-batches of at most ``rows`` rows."""
        for i in range(0, len(self.tokens_BT), rows):
            part = slice(i, i + rows)
            yield Batch(
                self.tokens_BT[part], self.targets_BT[part], self.positions_BT[part], self.docs_BT[part], self.first_row
            )


def make_batch(plan: Plan, rows: range) -> Batch:
    """Tensors of the given rows of a plan."""
    read = [plan.row(n) for n in rows]
    stacks = (np.stack([getattr(r, name) for r in read]) for name in ("tokens", "targets", "positions", "docs"))
    tokens, targets, positions, docs = (torch.from_numpy(s) for s in stacks)
    return Batch(tokens, targets, positions, docs, rows.start)


class Loader:
    """Iterates over this rank's share of the global batches, without end; reads one batch ahead."""

    def __init__(self, plan: Plan, batch_rows: int, *, rank: int = 0, world: int = 1, next_row: int = 0) -> None:
        if batch_rows % world:
            raise ConfigError(
                f"A global batch of {batch_rows} rows can't be shared equally by {world} processes. "
                f"Change train.batch_tokens or the number of processes."
            )
        self.plan, self.batch_rows, self.rank, self.world, self.next_row = plan, batch_rows, rank, world, next_row
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def state(self) -> dict[str, int | str]:
        """What a resumed run needs to go on with the next unseen row."""
        return {"plan": self.plan.hash, "next_row": self.next_row}

    def restore(self, state: dict[str, int | str]) -> None:
        """Go on where ``state`` was taken. Raises `RunError` if the rows would not be the same ones."""
        if state["plan"] != self.plan.hash:
            raise RunError(
                f"The data changed under the run: the checkpoint was trained on plan {state['plan']}, the store now gives plan "
                f"{self.plan.hash}. Bring back the original text and tokenizer, or start a new run under another name."
            )
        self.next_row, self._ahead = int(state["next_row"]), None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._ahead is None or self._ahead[0] != self.next_row:
            self._ahead = (self.next_row, self._pool.submit(self._read, self.next_row))
        batch = self._ahead[1].result()
        self.next_row += self.batch_rows
        self._ahead = (self.next_row, self._pool.submit(self._read, self.next_row))
        return batch

    def _read(self, first: int) -> Batch:
        share = self.batch_rows // self.world
        start = first + self.rank * share
        batch = make_batch(self.plan, range(start, start + share))
        return Batch(batch.tokens_BT, batch.targets_BT, batch.positions_BT, batch.docs_BT, first)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)
