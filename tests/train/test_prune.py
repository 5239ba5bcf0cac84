"""Pruning a run, and training on from what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from support import slm, tiny_config

from slm import checkpoint
from slm.config.errors import ConfigError
from slm.config.yaml import dump_yaml
from slm.data.prepare import prepare
from slm.model.decoder import Decoder
from slm.model.prune import Shape
from slm.run import Run
from slm.train.loop import train
from slm.train.parallel import World
from slm.train.prune import calibration_corpus, calibration_rows, prune, save_pruned

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def parent(tiny) -> checkpoint.Restored:
    run = tiny(train__budget={"steps": 120}, model__layers=4, model__ffn__hidden=96, log__eval_every=None, log__dir="p")
    train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), ALONE)
    return checkpoint.restore("p")


def loss_of(model: Decoder, corpus) -> float:
    from slm.eval.bpb import evaluate

    return evaluate(model, corpus.documents("heldout"), corpus.tokenizer.eot_id).bpb


def test_a_pruned_model_is_far_better_than_a_fresh_one_and_is_trained_on(parent, tiny) -> None:
    corpus = calibration_corpus(parent, None)
    rows = calibration_rows(parent, corpus, 20)
    shape = Shape(layers=3, dim=28, heads=2, hidden=64)
    pruned = prune(parent.model, shape, rows)
    fresh = Decoder(pruned.model.config).init_weights(0).eval()
    whole, small, random = (loss_of(m, corpus) for m in (parent.model, pruned.model, fresh))
    assert whole < small < whole + 0.7 * (random - whole)
    saved = save_pruned(pruned, parent, shape, Path("small"))
    assert checkpoint.restore("small").state["pruned"] == {"layers": 3, "dim": 28, "heads": 2, "hidden": 64, "kept_layers": pruned.blocks}  # fmt: skip
    config = tiny_config(
        train__init_from="small", train__distill={"teacher": "p"}, log__dir="on", train__budget={"steps": 20}
    )
    run = Run(**config | {"model": yaml.safe_load((saved / "config.yaml").read_text())["model"]})
    result = train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), ALONE)
    assert loss_of(result.model.eval(), corpus) < small
    with pytest.raises(ConfigError, match="holds a run already"):
        save_pruned(pruned, parent, shape, Path("small"))


def test_the_verb(parent) -> None:
    done = slm("model", "prune", "p", "--out", "s", "--layers", "2", "--ffn-hidden", "48", "--rows", "9", "--json")
    said = json.loads(done.stdout)
    assert len(said["kept_layers"]) == 2
    assert len(said["influence"]) == 4
    assert said["params"]["unique"] < said["parent_params"]["unique"]
    store = next(Path("data").glob("synthetic*"))
    slm("model", "prune", "s", "--out", "t", "--layers", "1", "--calibrate", str(store))
    Path("r.yaml").write_text(dump_yaml(Run(**tiny_config()).model_dump(mode="json")))
    slm("model", "prune", "s", "--out", "u", "--layers", "1", "--calibrate", "r.yaml")
    assert all(
        torch.equal(a, b) for a, b in zip(*(checkpoint.restore(p).model.parameters() for p in ("t", "u")), strict=True)
    )
    asked = slm("model", "prune", "s", "--out", "v", "--layers", "1", code=2)  # a pruned model has no text of its own
    assert "--calibrate" in asked.stderr


def test_the_verb_refuses(tmp_path: Path, parent) -> None:
    assert "Nothing to prune" in slm("model", "prune", "p", "--out", "s", code=2).stderr
    assert "from 4 to 9" in slm("model", "prune", "p", "--out", "s", "--layers", "9", code=2).stderr
    assert "holds a run already" in slm("model", "prune", "p", "--out", "p", "--layers", "2", code=2).stderr
