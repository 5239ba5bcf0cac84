"""`slm checkpoint`, on checkpoints written by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from slm import checkpoint
from slm.cli.checkpoint import register
from slm.config.errors import ConfigError, RunError
from slm.config.yaml import dump_yaml
from slm.model.decoder import Decoder
from slm.run import Run

RUN = "runs/tiny"


def call(*arguments: object) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


def answer(*arguments: object) -> Any:
    result = call(*arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def refusal(*arguments: object) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, ConfigError | RunError)
    return str(result.exception)


@pytest.fixture
def steps(tiny: Callable[..., Run]) -> list[Path]:
    """A run with checkpoints of three different models of one shape."""
    run = tiny()
    for step in (1, 2, 3):
        model = Decoder(run.model).init_weights(step)
        checkpoint.save(
            Path(RUN), step, model=dict(model.named_parameters()), optimizer={}, state={"step": step, "tokens": 1000 * step, "heldout_bpb": 2.5},
            config=dump_yaml(run.model_dump(mode="json"), []), tokenizer=b"{}", keep=3,
        )  # fmt: skip
    return sorted(Path(RUN, "checkpoints").glob("step-*"))


def test_ls(steps: list[Path]) -> None:
    answer("pin", steps[0], "--why", "trunk of a branch")
    raw = bytearray((steps[2] / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (steps[2] / "model.safetensors").write_bytes(raw)
    found = answer("ls", "tiny", "--verify")
    assert found["run"] == RUN
    rows = found["checkpoints"]
    assert [(c["name"], c["step"], c["tokens"], c["heldout_bpb"]) for c in rows][1] == ("step-00000002", 2, 2000, 2.5)
    assert [c["pinned"] for c in rows] == ["trunk of a branch", None, None]
    assert [c["whole"] for c in rows] == [True, True, False]
    assert rows[0]["bytes"] == sum(f.stat().st_size for f in steps[0].iterdir())
    assert "model.safetensors: damaged" in rows[2]["fault"]
    assert [c["whole"] for c in answer("ls", RUN)["checkpoints"]] == [None] * 3
    text = call("ls", RUN, "--verify").stdout
    assert "trunk of a branch" in text
    assert "NO" in text
    assert "model.safetensors: damaged" in text
    assert "No run with checkpoints at 'nowhere'. Runs under runs/ here, the nearest names first: tiny." in refusal(
        "ls", "nowhere"
    )


def test_verify_and_unpin(steps: list[Path]) -> None:
    assert answer("verify", RUN) == {"checkpoint": str(steps[2]), "whole": True}
    (steps[1] / "config.yaml").unlink()
    assert "config.yaml: can't be read" in refusal("verify", steps[1])
    answer("pin", steps[1])
    assert answer("unpin", steps[1])["was_pinned"]
    assert not answer("unpin", steps[1])["was_pinned"]


def test_an_average_is_a_checkpoint_that_can_be_used(steps: list[Path]) -> None:
    weights = [checkpoint.load(s).model for s in steps]
    answer("average", RUN, "--out", "mean")
    mean = checkpoint.load(Path("mean"))
    for name, t in mean.model.items():
        expected = sum(w[name].double() for w in weights) / 3
        assert (t - expected).abs().max() < 1e-7
    assert mean.optimizer == {}
    assert mean.state["average"] == {"of": [str(s) for s in steps], "shares": None}
    assert checkpoint.restore("mean").model.config.layers == 2
    answer("average", steps[0], steps[2], "--out", "shared", "--shares", "3,1")
    shared = checkpoint.load(Path("shared"))
    name = next(iter(weights[0]))
    expected = (weights[0][name].double() * 3 + weights[2][name].double()) / 4
    assert (shared.model[name] - expected).abs().max() < 1e-7
    answer("average", RUN, "--out", "fallen", "--decay-shape", "linear")
    assert checkpoint.load(Path("fallen")).state["average"]["shares"] == pytest.approx([1 / 3] * 3)


def test_averages_that_make_no_sense_are_refused(steps: list[Path]) -> None:
    assert "one of them" in refusal("average", RUN, "--out", "x", "--shares", "1,2,3", "--decay-shape", "linear")
    assert "as many positive shares" in refusal("average", RUN, "--out", "x", "--shares", "1,2")
    assert "give numbers with commas" in refusal("average", RUN, "--out", "x", "--shares", "1;2")
    checkpoint.save(
        Path("runs/other"), 1, model={}, optimizer={}, state={}, config="model: {dim: 3}\n", tokenizer=b"{}"
    )
    assert "another model" in refusal("average", steps[0], "runs/other", "--out", "x")
    assert "is there already" in refusal("average", RUN, "--out", RUN)
    assert not Path("x").exists()


def test_merge_joins_the_pieces(steps: list[Path]) -> None:
    """Two files of pieces, as two processes would have left them."""
    import torch

    from slm.checkpoint.manifest import Manifest
    from slm.checkpoint.pieces import Region, bytes_of
    from slm.checkpoint.tensor_file import Part, write_tensors

    whole, manifest = torch.arange(12.0).view(6, 2), Manifest.read(steps[2])
    for i, (a, b) in enumerate(((0, 4), (4, 6))):
        part = Part("w", "F32", Region((6, 2), (a, 0), (b - a, 2)), lambda a=a, b=b: bytes_of(whole[a:b]))
        name = f"ema-{i + 1:05d}-of-00002.safetensors"
        manifest.files[name] = write_tensors(steps[2] / name, [part])
    manifest.write(steps[2])
    assert answer("merge", RUN, "--out", "one")["checkpoint"] == "one"
    assert sorted(p.name for p in Path("one").glob("*.safetensors")) == ["ema.safetensors", "model.safetensors", "optimizer.safetensors"]  # fmt: skip
    assert torch.equal(checkpoint.load(Path("one")).groups["ema"]["w"], whole)
    assert checkpoint.load(Path("one")).config == checkpoint.load(steps[2]).config
    assert "is there already" in refusal("merge", RUN, "--out", "one")


def test_a_damaged_one_leads_to_the_others_and_not_to_an_option_of_train(steps: list[Path]) -> None:
    raw = bytearray((steps[2] / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (steps[2] / "model.safetensors").write_bytes(raw)
    for arguments in (("verify", RUN), ("merge", RUN, "--out", "one"), ("average", RUN, "--out", "mean")):
        text = refusal(*arguments)
        assert "damaged" in text
        assert "log.resume" not in text
        assert f"such as {steps[1]}." in text
    shutil.rmtree(steps[0])
    shutil.rmtree(steps[1])
    assert "no other checkpoint beside it" in refusal("verify", RUN)


def test_a_run_without_checkpoints_has_no_average() -> None:
    Path("runs/new/checkpoints").mkdir(parents=True)
    assert "The run new has no checkpoints yet" in refusal("average", "new", "--out", "mean")
