"""What is asked for beside overrides reaches the process that trains."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from support import slm

from slm import checkpoint
from slm.cli.asked import as_overrides
from slm.config.compose import compose
from slm.config.yaml import dump_yaml
from slm.data.prepare import prepare
from slm.run import Run
from slm.train.loop import train
from slm.train.parallel.world import World, pick_device


@pytest.mark.parametrize(
    "path",
    [
        "runs/a",
        "/a b/c=d,e",
        'a "quoted" one',
        "runs/x/checkpoints/step-00000010",
        "C:\\a\\b",
        "a\\",
        'a\\"b',
        "a\\\\",
        "${b}",
    ],
)
def test_a_path_comes_through_as_it_is(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "resolve", lambda path: path)
    given = as_overrides(["train.decay=5%"], path, 3)
    run = compose("quickstart", given, schema=Run).config
    assert (run.log.branch_from, run.log.profile) == (path, 3)
    assert given[0] == "train.schedule.decay=5%"


def test_nothing_asked_is_nothing_said() -> None:
    assert as_overrides(None, None, 0) == []
    assert as_overrides(["train.seed=1"], None, 0) == ["train.seed=1"]


def test_a_branch_is_launched_as_one(tiny) -> None:
    trunk = tiny(log__dir="trunk")
    train(trunk, prepare(trunk.data, trunk.tokenizer, trunk.impl.data_dir), World(0, 1, pick_device("cpu")))
    Path("recipe.yaml").write_text(dump_yaml(trunk.model_dump(mode="json")))
    asked = (
        "--branch-from",
        "trunk/checkpoints/step-00000008",
        "train.decay=2 steps",
        "log.dir=branch",
        "--profile",
        "2",
    )
    found = json.loads(slm("launch", "slurm", "recipe.yaml", *asked, "--dry-run", "--json").stdout)
    line = next(line for line in found["script"].splitlines() if "recipe.yaml" in line)
    words = shlex.split(line.rstrip("\\ "))
    assert 'log.branch_from="trunk/checkpoints/step-00000008"' in words
    assert "log.profile=2" in words
    assert "10 steps" in found["plan"]
    assert str(Path("branch").absolute()) in found["script"]
