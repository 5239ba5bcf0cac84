"""From a checkpoint and some text to a smaller checkpoint: what `slm model prune` does.

The result is a run directory with weights and no optimiser, as an imported model's. ``train.init_from`` goes on from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slm import checkpoint
from slm.checkpoint import Restored
from slm.config.errors import ConfigError
from slm.config.yaml import dump_yaml
from slm.data.corpus import Corpus
from slm.data.loader import make_batch
from slm.data.plan import Plan
from slm.data.store import Store
from slm.eval.bpb import corpus_of
from slm.model.decoder import Decoder
from slm.model.prune import Shape, cut, measure, smaller
from slm.model.prune.importance import Rows

BATCH_ROWS = 8


@dataclass(frozen=True)
class Pruned:
    """A cut model, and what was kept of its parent. ``blocks``: numbers of the parent's layers; ``influence``: of all of them."""

    model: Decoder
    blocks: list[int]
    influence: list[float]


def calibration_corpus(restored: Restored, given: Path | str | None) -> Corpus:
    """The text to measure on: a token store, or (None) what the checkpoint was trained on.

    Raises:
        ConfigError: there is none, or its tokenizer isn't the checkpoint's.
    """
    if given is None and "data" not in restored.config:
        raise ConfigError(
            f"{restored.path} was imported or pruned, so it has no text of its own to measure on. Name a recipe or a token store with --calibrate."
        )
    corpus = corpus_of(restored.config) if given is None else Corpus({"store": Store.open(given)})
    check_tokenizer(restored, corpus)
    return corpus


def check_tokenizer(restored: Restored, corpus: Corpus) -> None:
    """Raise `ConfigError` unless the text's ids are the checkpoint's."""
    if corpus.tokenizer_bytes != restored.tokenizer:
        where = ", ".join(str(store.path) for store in corpus.stores.values())
        raise ConfigError(
            f"The store {where} was made with another tokenizer than {restored.path}: its ids mean other text."
        )


def calibration_rows(
    restored: Restored, corpus: Corpus, rows: int, *, seq_len: int | None = None, seed: int = 0
) -> list[Rows]:
    """The first rows of a plan over all training text of a corpus, in batches, on the model's device."""
    model = restored.model.config
    length = min(model.context or seq_len or 512, seq_len or model.context or 512)
    members = [(name, store.split("train")) for name, store in corpus.stores.items()]
    plan = Plan(members, seq_len=length, eot=corpus.tokenizer.eot_id, seed=seed, cache_dir=corpus.cache_dir)
    device = restored.model.embedding.weight.device
    found = []
    for first in range(0, min(rows, plan.rows_per_epoch), BATCH_ROWS):
        batch = make_batch(plan, range(first, min(first + BATCH_ROWS, rows, plan.rows_per_epoch))).to(device)
        found.append((batch.tokens_BT, batch.positions_BT, batch.docs_BT))
    return found


def prune(model: Decoder, shape: Shape, rows: list[Rows]) -> Pruned:
    """Measure on rows and cut.

    Raises:
        ConfigError: this model can't be cut like that; the reason is named.
    """
    to = smaller(model.config, shape)  # refused before anything is spent
    importance = measure(model, rows)
    small, kept = cut(model, to, importance, rows)
    return Pruned(small, kept.blocks, importance.layers)


def save_pruned(pruned: Pruned, parent: Restored, shape: Shape, run_dir: Path) -> Path:
    """Write a cut model as a checkpoint of a run directory.

    Raises:
        ConfigError: ``run_dir`` holds a run already.
        RunError: the disk is full or not writable.
    """
    config: dict[str, Any] = {
        "name": run_dir.name,
        "model": pruned.model.config.model_dump(mode="json"),
        "pruned_from": parent.path.resolve().as_posix(),
    }
    state = {
        "step": 0,
        "tokens": 0,
        "pruned": {k: v for k, v in asdict(shape).items() if v is not None} | {"kept_layers": pruned.blocks},
    }
    refuse_existing(run_dir)
    weights: dict[str, torch.Tensor] = dict(pruned.model.named_parameters())
    return checkpoint.save(
        run_dir, 0, model=weights, optimizer={}, state=state, config=dump_yaml(config, []), tokenizer=parent.tokenizer
    )


def refuse_existing(run_dir: Path) -> None:
    """Raise `ConfigError` if a directory holds a run."""
    if (run_dir / "checkpoints").exists() or (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir} holds a run already. Choose another directory with --out.")
