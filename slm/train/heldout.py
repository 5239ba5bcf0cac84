"""Bits per byte on held-out rows, within the loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slm.data.corpus import Corpus
from slm.data.loader import Batch, make_batch
from slm.data.plan import Plan
from slm.data.plan.of_corpus import plan_of
from slm.eval.rows import bits_per_byte, row_sums
from slm.train.optim.steps import evaluation_weights
from slm.train.parallel.world import World

if TYPE_CHECKING:
    from slm.run import Run
    from slm.train.state import TrainState

EVAL_ROWS = 16
"""Rows per forward pass."""


class Heldout:
    """The first held-out rows of each source, shared among the processes."""

    def __init__(self, run: "Run", corpus: Corpus, world: World, token_bytes_V: Tensor, state: "TrainState") -> None:
        self.run, self.corpus, self.world, self.state = run, corpus, world, state
        self.token_bytes_V = token_bytes_V

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The held-out rows of each source, in an order of their own."""
        return {name: plan_of(self.corpus, self.run.data, "heldout", source=name) for name in self.corpus.stores}

    def evaluate(self) -> dict[str, Any]:
        """A record of the weights that are to be used: averaged ones, where there are such."""
        state = self.state
        state.objective.eval()
        with evaluation_weights(state.optimizers), state.averaged():
            sums = {name: self._sums(plan) for name, plan in self.plans.items()}
            state.spread.evaluated()
        state.objective.train()
        nats, size = map(sum, zip(*sums.values(), strict=True))
        record = {"kind": "eval", "step": state.step, "heldout_bpb": bits_per_byte(nats, size)}
        if len(sums) > 1:
            record["heldout_bpb_by_source"] = {name: bits_per_byte(*own) for name, own in sums.items()}
        return record

    def _sums(self, plan: Plan) -> tuple[float, float]:
        """(nats, bytes) over the first held-out rows of a source."""
        state = self.state
        batches = self._batches(plan)
        sums = row_sums(state.objective, batches, self.token_bytes_V, self.run.train.precision, self.world.device)
        nats, length = self.world.sum(torch.tensor(sums, dtype=torch.float64).to(state.sums)).tolist()
        return nats, length

    def _batches(self, plan: Plan) -> Iterator[Batch]:
        """This process's rows, in as many batches as every other process has: sharded ones go forward together."""
        count = min(self.run.log.eval_rows, plan.rows_per_epoch)
        mine = range(self.world.rank, count, self.world.size)
        most = -(-count // self.world.size)
        for i in range(0, most, EVAL_ROWS):
            if rows := mine[i : i + EVAL_ROWS]:
                yield make_batch(plan, rows)
            else:
                batch = make_batch(plan, range(1))
                yield replace(batch, targets_BT=torch.full_like(batch.targets_BT, -100))
