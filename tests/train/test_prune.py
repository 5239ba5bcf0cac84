"""Pruning a run, and training on from what is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support import tiny_config

from slm import checkpoint
from slm.cli.prune import prune_model
from slm.config.errors import ConfigError
from slm.config.yaml import dump_yaml
from slm.data.prepare import prepare
from slm.eval.bpb import evaluate
from slm.model.decoder import Decoder
from slm.model.prune import Shape
from slm.run import Run
from slm.train.loop import train
from slm.train.parallel.world import World
from slm.train.prune import calibration_corpus, calibration_rows, prune, save_pruned

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model, and its text."""
    folder = tmp_path_factory.mktemp("trained")
    places = {"log__dir": str(folder / "p"), "impl__data_dir": str(folder / "data")}
    config = tiny_config(**places, train__budget={"steps": 120}, model__layers=4, model__ffn__hidden=96)
    run = Run(**config | {"log": config["log"] | {"eval_every": None}})
    train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), ALONE)
    return folder


@pytest.fixture
def parent(trained: Path) -> checkpoint.Restored:
    shutil.copytree(trained / "p", "p")
    shutil.copytree(trained / "data", "data")
    return checkpoint.restore("p")


def loss_of(model: Decoder, corpus) -> float:
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


def said(capsys: pytest.CaptureFixture[str], *given: str, **options) -> dict:
    prune_model(*given, json=True, **options)
    return json.loads(capsys.readouterr().out)


def test_the_verb(parent, capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, "p", Path("s"), layers=2, ffn_hidden=48, rows=9)
    assert len(first["kept_layers"]) == 2
    assert len(first["influence"]) == 4
    assert first["params"]["unique"] < first["parent_params"]["unique"]
    store = next(p for p in Path("data").glob("synthetic*") if p.is_dir())
    said(capsys, "s", Path("t"), layers=1, calibrate=str(store))
    Path("r.yaml").write_text(dump_yaml(Run(**tiny_config()).model_dump(mode="json")))
    said(capsys, "s", Path("u"), layers=1, calibrate="r.yaml")
    both = (checkpoint.restore(p).model.parameters() for p in ("t", "u"))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
    with pytest.raises(ConfigError, match="--calibrate"):  # a pruned model has no text of its own
        prune_model("s", Path("v"), layers=1)


def test_the_verb_refuses(parent) -> None:
    with pytest.raises(ConfigError, match="Nothing to prune"):
        prune_model("p", Path("s"))
    with pytest.raises(ConfigError, match="from 4 to 9"):
        prune_model("p", Path("s"), layers=9)
    with pytest.raises(ConfigError, match="holds a run already"):
        prune_model("p", Path("p"), layers=2)
