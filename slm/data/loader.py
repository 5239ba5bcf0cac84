"""The loader: tensors of this process's share of every global batch.

Global batch b is rows [b G, (b+1) G) of the plan; rank r of w takes the r-th of w contiguous slices. The
state is ``{plan, next_row}`` and nothing else, so a run resumes at any world size, micro-batch and batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.config.errors import ConfigError, RunError
from slm.data.plan import diff
from slm.data.plan.memory import recall
from slm.data.plan.plan import Plan
from slm.data.plan.rows import SegmentBound


@dataclass(frozen=True)
class Batch:
    """Rows of one process, int64 of shape (rows, seq_len).

    ``cu_seqlens``: int32, where every segment begins in the flattened rows, for attention over variable lengths: (segments +
    1,) entries from 0 to rows * seq_len, then that last number again up to a length that depends on nothing but the plan
    and the number of rows, so that shapes are the same at every step. ``max_seqlen``: no segment of the plan is longer.
    ``first_row``: number of the global batch's first row. ``rows``: numbers in the plan of the rows that are here.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    docs_BT: Tensor
    first_row: int
    rows: range
    cu_seqlens: Tensor
    max_seqlen: int
    bound: SegmentBound = field(repr=False)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in memory from which a GPU takes it without making the host wait."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in found.items() if isinstance(value, Tensor)}
        return replace(self, **changed)

    def split(self, rows: int) -> Iterator["Batch"]:
        """Micro-batches of at most ``rows`` rows."""
        total, seq_len = self.tokens_BT.shape
        if rows >= total:
            yield self
            return
        boundaries = self.cu_seqlens.cpu().numpy()
        for i in range(0, total, rows):
            part = slice(i, min(i + rows, total))
            count = part.stop - part.start
            first, last = np.searchsorted(boundaries, [part.start * seq_len, part.stop * seq_len])
            own = _padded(boundaries[first : last + 1] - part.start * seq_len, self.bound.of(count))
            yield replace(
                self,
                tokens_BT=self.tokens_BT[part],
                targets_BT=self.targets_BT[part],
                positions_BT=self.positions_BT[part],
                docs_BT=self.docs_BT[part],
                rows=self.rows[part],
                cu_seqlens=torch.from_numpy(own).to(self.cu_seqlens.device),
            )


def make_batch(plan: Plan, rows: range) -> Batch:
    """Tensors of the given rows of a plan."""
    read = plan.gather(np.arange(rows.start, rows.stop, rows.step))
    return Batch(
        torch.from_numpy(read.tokens),
        torch.from_numpy(read.targets),
        torch.from_numpy(read.positions),
        torch.from_numpy(read.docs),
        rows.start,
        rows,
        torch.from_numpy(_padded(read.boundaries, plan.segments.of(len(rows)))),
        plan.max_seqlen,
        plan.segments,
    )


def _padded(boundaries: np.ndarray, segments: int) -> np.ndarray:
    """Boundaries with the last one repeated up to ``segments`` segments (or, once in 10^12 batches, twice as many)."""
    while segments < len(boundaries) - 1:
        segments *= 2
    padded = np.full(segments + 1, boundaries[-1], dtype=np.int32)
    padded[: len(boundaries)] = boundaries
    return padded


class Loader:
    """Iterates over this rank's share of the global batches, to the end of the plan if it has one; reads one batch ahead.
    ``pin``: see `Batch.pinned`."""

    def __init__(
        self,
        plan: Plan,
        batch_rows: int,
        *,
        rank: int = 0,
        world: int = 1,
        next_row: int = 0,
        say: Callable[[str], None] | None = None,
        pin: bool = False,
    ) -> None:
        self.plan, self.rank, self.world, self.next_row, self.pin = plan, rank, world, next_row, pin
        self._say = say or (lambda _: None)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: tuple[int, int, Future[Batch]] | None = None
        self.set_batch_rows(batch_rows)

    def set_batch_rows(self, batch_rows: int) -> None:
        """Rows of the global batches from the next one on. Raises `ConfigError` if the processes can't share them equally."""
        if batch_rows < 1 or batch_rows % self.world:
            raise ConfigError(
                f"A global batch of {batch_rows} rows can't be shared equally by {self.world} processes. "
                f"Change train.batch_tokens or the number of processes."
            )
        self.batch_rows = batch_rows

    def state(self) -> dict[str, int | str]:
        """What a resumed run needs to go on with the next unseen row."""
        return {"plan": self.plan.hash, "next_row": self.next_row}

    def restore(self, state: dict[str, Any], *, allow_data_change: bool = False) -> None:
        """Go on where ``state`` was taken.

        With ``allow_data_change`` a run goes on with the same row number of another plan, and says so.

        Raises:
            RunError: the rows would not be the same ones; the message says which fields of the plan changed.
        """
        if state["plan"] != self.plan.hash:
            changes = self._changes(str(state["plan"]))
            if not allow_data_change:
                raise RunError(
                    f"The data changed under the run: the checkpoint was trained on plan {state['plan']}, the store now gives plan "
                    f"{self.plan.hash}. {changes} Bring back the original text, tokenizer and settings, start a new run under "
                    f"another name, or allow the change of data to go on from row {int(state['next_row']):,} of the new plan."
                )
            self._say(
                f"The data changed: from row {int(state['next_row']):,} on, rows are those of plan {self.plan.hash} instead of "
                f"{state['plan']}. {changes}"
            )
        self.next_row = int(state["next_row"])

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if (batch := self._take(self.next_row)) is None:
            raise StopIteration
        self._ahead = None  # whatever comes of it: an error is not handed out twice
        result = batch.result()
        self.next_row += self.batch_rows
        self._take(self.next_row)
        return result

    def _take(self, first: int) -> Future[Batch] | None:
        """The global batch that begins at a row, being read; None if the plan ends within it."""
        if self._ahead is not None and self._ahead[:2] == (first, self.batch_rows):
            return self._ahead[2]
        if self._ahead is not None:
            self._ahead[2].cancel()
        if self.plan.limit is not None and first + self.batch_rows > self.plan.limit:
            return None
        future = self._pool.submit(self._read, first, self.batch_rows)
        self._ahead = (first, self.batch_rows, future)
        return future

    def _read(self, first: int, rows: int) -> Batch:
        share = rows // self.world
        start = first + self.rank * share
        batch = replace(make_batch(self.plan, range(start, start + share)), first_row=first)
        return batch.pinned() if self.pin else batch

    def _changes(self, old: str) -> str:
        described = recall(self.plan.cache_dir, old)
        if described is None:
            return "What it was made of is no longer known here."
        return f"What changed: {'; '.join(diff(described, self.plan.described))}."

    def close(self) -> None:
        """Stop reading ahead; waits for the batch that is being read."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
