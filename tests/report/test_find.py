"""A run is found by what it is called; where there is none of that name, the runs that there are get listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.config.errors import ConfigError
from slm.config.runs import LISTED, ROOT, runs_under
from slm.report.find import find_run, is_run
from slm.report.records import RunFiles


def make(*names: str) -> None:
    for name in names:
        place = Path("runs") / name
        (place / "checkpoints" / "step-00000004").mkdir(parents=True)
        for folder in (place, place / "checkpoints" / "step-00000004"):
            (folder / "config.yaml").write_text(f"name: {name}\n")


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as error:
        find_run(name)
    return str(error.value)


def test_a_run_is_found_by_path_and_by_name() -> None:
    make("sweep/a")
    assert find_run("runs/sweep/a") == Path("runs/sweep/a")
    assert find_run("sweep/a") == Path("runs/sweep/a")
    assert RunFiles(find_run("sweep/a")).name == "sweep/a"


def test_runs_stages_and_members_of_sweeps_are_listed_and_checkpoints_are_not() -> None:
    make("adamw", "staged/1-short", "staged/2-long", "sweep/train.seed=1")
    runs = runs_under(ROOT, is_run)
    assert runs == ["adamw", "staged/1-short", "staged/2-long", "sweep/train.seed=1"]
    said = refusal("nothing-like-it")
    assert "checkpoints" not in said
    assert all(name in said for name in runs)


def test_stages_come_in_their_order() -> None:
    make(*(f"staged/{n}-x" for n in range(1, 12)))
    assert runs_under(ROOT, is_run) == [f"staged/{n}-x" for n in range(1, 12)]


def test_the_nearest_names_come_first_and_about_ten_of_them() -> None:
    make(*(f"member/lr={i}" for i in range(30)), "staged/1-short", "staged/2-long", "toy-relu2")
    assert "Did you mean 'toy-relu2'? Runs under runs/ here, the nearest names first: toy-relu2, " in refusal(
        "toy-relu"
    )
    for asked in ("staged", "runs/staged/"):
        assert refusal(asked).endswith(
            "the stages of one or a sweep's: runs/staged/1-short, runs/staged/2-long. Name one of them."
        )
    assert "first: staged/1-short, staged/2-long, " in refusal("stag")
    said = refusal("zzz")
    assert "Did you mean" not in said
    assert said.endswith(f", and {33 - LISTED} more.")
    assert said.count("member/") == LISTED


def test_a_single_run_is_named_once() -> None:
    make("sweep/a")
    assert refusal("sweep/b").endswith("a config.yaml. Did you mean 'sweep/a'?")


@pytest.mark.parametrize("name", ["x", "", "/", "a" * 300, "\0"])
def test_no_run_at_all_says_how_to_make_one(name: str) -> None:
    assert "slm train quickstart" in refusal(name)
