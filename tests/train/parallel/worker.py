"""A process of ``torchrun``: trains every case of a JSON file, one after the other, each in a run directory of its own.

python -m torch.distributed.run --nproc-per-node 2 worker.py cases.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from slm.data.prepare import prepare
from slm.run import Run
from slm.train.loop import Session, train
from slm.train.parallel.world import World, join_world


class Stop(Exception):
    """The end of a part of a run."""


def go(case: dict, world: World) -> None:
    """Train a case to its end, or to ``stop`` steps as if it had been killed behind them."""
    run = Run(**case["run"])
    corpus = prepare(run.data, run.tokenizer, run.impl.data_dir)
    real = Session.train_step

    def train_step(self: Session) -> None:
        if self.state.step == case.get("stop"):
            raise Stop
        real(self)

    Session.train_step = train_step  # type: ignore[method-assign]
    try:
        result = train(run, corpus, world)
        if world.main:
            torch.save(result.model.state_dict(), result.run_dir / "final.pt")
    except Stop:
        pass
    finally:
        Session.train_step = real  # type: ignore[method-assign]
    world.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        for case in json.loads(Path(sys.argv[1]).read_text()):
            go(case, world)
