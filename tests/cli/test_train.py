"""Sweeps of `slm train -m`: what is refused before the first run starts, and where runs lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from support import tiny_config
from typer.testing import CliRunner, Result

from slm import checkpoint, pipeline
from slm.cli.train import register
from slm.config.errors import ConfigError
from slm.config.yaml import dump_yaml
from slm.run import Run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that would have been trained."""
    runs: list[Run] = []

    def launch(run: Run, **_: Any) -> dict[str, Any]:
        runs.append(run)
        return {"name": run.name, "interrupted": False}

    monkeypatch.setattr(pipeline, "launch", launch)
    return runs


def call(*arguments: str) -> Result:
    Path("tiny.yaml").write_text(dump_yaml(tiny_config()))
    return invoke("tiny.yaml", *arguments)


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)  # or the only verb would be the app itself
    register(app)
    return CliRunner().invoke(app, ["train", *arguments])


def refusal(*arguments: str) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def test_runs_are_named_by_what_varies(started: list[Run]) -> None:
    result = call("-m", "train.clip=2", "train.seed=0,1", "model/ffn=swiglu,relu2")
    assert result.exception is None, result.exception
    assert [run.name for run in started] == [
        f"tiny/train.seed={s},model.ffn={f}" for s in (0, 1) for f in ("swiglu", "relu2")
    ]
    assert "A sweep of 4 runs" in result.stdout


def test_a_run_that_was_moved_goes_on_where_it_is_or_not_at_all(started: list[Run], tmp_path: Path) -> None:
    checkpoint.save(
        Path("runs/old"), 4, model={"w": torch.ones(1)}, optimizer={}, state={"step": 4}, config="", tokenizer=b"{}"
    )
    Path("runs/old/config.yaml").write_text(dump_yaml(tiny_config(name="old")))
    invoke("runs/old/config.yaml")
    Path("runs/old").rename("runs/new")
    result = invoke("runs/new/config.yaml", "train.clip=1")
    assert isinstance(result.exception, ConfigError)
    assert "would begin anew in runs/old. To go on with the run: log.dir=" in str(result.exception)
    for said in (f"log.dir={Path('runs/new').resolve()}", "name=other"):
        assert invoke("runs/new/config.yaml", said).exception is None
    assert [run.name for run in started] == ["old", "old", "other"]


def test_a_branch_may_begin_with_its_trunks_own_config(started: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(
        Path("runs/a"), 4, model={"w": torch.ones(1)}, optimizer={}, state={"step": 4}, config="", tokenizer=b"{}"
    )
    Path("runs/a/config.yaml").write_text(dump_yaml(tiny_config(name="a")))
    monkeypatch.setattr("slm.cli.train.branched", lambda run: run.with_(name="a-branch-4"))
    result = invoke("runs/a/config.yaml", "--branch-from", "runs/a")
    assert result.exception is None, result.exception
    assert [run.name for run in started] == ["a-branch-4"]


def test_one_combination_is_an_ordinary_run(started: list[Run]) -> None:
    result = call("-m", "train.seed=1")
    assert [(run.name, run.train.seed) for run in started] == [("tiny", 1)]
    assert "sweep" not in result.stdout


def test_only_the_main_process_says_what_was_composed(started: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "model.ffn: swiglu -> relu2" in call("model/ffn=relu2").stdout
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert call("-m", "model/ffn=relu2,gelu").stdout == ""


def test_runs_that_would_share_a_directory_are_refused_before_the_first(started: list[Run]) -> None:
    assert "2 of the 2 runs of this sweep would share the directory here: log.dir" in refusal(
        "-m", "train.seed=0,1", "log.dir=here"
    )
    assert "share the directory a: log.dir" in refusal("-m", "train.seed=0,1", "log.dir=a,b")
    assert "runs/tiny/train.seed=0: they have the same values" in refusal("-m", "train.seed=0,0")
    assert started == []
    assert call("-m", "log.dir=a,b").exception is None
    assert [run.log.dir for run in started] == ["a", "b"]


def test_values_too_long_for_a_directory_are_refused_before_the_first(started: list[Run]) -> None:
    text = refusal("-m", f"impl.data_dir=short,{'x' * 300}")
    assert "named by what varies" in text
    assert "314 bytes" in text
    assert started == []
