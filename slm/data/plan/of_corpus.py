"""The plan of a run: the rows of one split of its corpus, under its ``data`` section."""

from __future__ import annotations

from slm.data.config import Data
from slm.data.corpus import Corpus
from slm.data.plan.plan import Plan
from slm.data.plan.stages import Horizon


def plan_of(
    corpus: Corpus, data: Data, split: str = "train", *, horizon: Horizon | None = None, source: str | None = None
) -> Plan:
    """Rows of ``train`` in the run's mixture, or of one source alone (``source``); of ``heldout`` one source's.

    ``horizon``: what is known of the length of the run, which a mixture's stages may refer to.
    """
    names = [source] if source is not None else list(corpus.stores)
    return Plan(
        [(name, corpus.stores[name].split(split)) for name in names],
        seq_len=data.seq_len,
        eot=corpus.tokenizer.eot_id,
        policy=data.packing if split == "train" else "best_fit",
        window=data.window,
        seed=data.seed,
        order=data.order,
        mixture=data.mixing if split == "train" and source is None else None,
        horizon=horizon,
        split=split,
        cache_dir=corpus.cache_dir,
    )
