from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support import tiny_config

from slm.config.errors import ConfigError, RunError
from slm.study.plan import plan_study, read_study
from slm.study.report import report, write_report
from slm.study.runner import result_of, run_study

STUDY = {
    "name": "toy",
    "question": "Does it <b>matter</b>?",
    "recipe": "tiny.yaml",
    "control": "rope",
    "arms": {"rope": [], "none": ["model/position=none"]},
    "seeds": [0, 1],
    "margin": 0.01,
}

FAKE = """
import json, pathlib, sys, time, yaml
recipe = pathlib.Path(sys.argv[1]); run = yaml.safe_load(recipe.read_text())
with open("started.log", "a") as f: f.write(run["name"] + "\\n")
time.sleep(float(sys.argv[2]))
if run["name"] in sys.argv[3:]: sys.exit("the disk caught fire")
bpb = 2.0 + 0.01 * run["train"]["seed"] + (0.5 if run["model"]["position"]["name"] == "none" else 0.0)
(recipe.parent / "metrics.jsonl").write_text(json.dumps({"kind": "eval", "step": 5, "heldout_bpb": bpb}) + "\\n")
summary = {"identity": recipe.parent.name, "bpb": bpb}
(recipe.parent / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def study(tmp_path: Path):
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config()))
    Path("study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    Path("fake.py").write_text(FAKE)
    return read_study("study.yaml")


def fake(seconds: float = 0.0, *failing: str):
    return lambda recipe: [sys.executable, "fake.py", str(recipe), str(seconds), *failing]


def started() -> list[str]:
    return Path("started.log").read_text().split() if Path("started.log").exists() else []


def test_arms_of_a_seed_share_data_and_differ_in_one_thing(study) -> None:
    runs = plan_study(study)
    assert [(p.arm, p.seed) for p in runs] == [("rope", 0), ("none", 0), ("rope", 1), ("none", 1)]
    for p in runs:
        assert p.run.train.seed == p.run.data.seed == p.seed
        assert p.dir.name == p.run.identity
    assert runs[0].run.data == runs[1].run.data
    assert (
        runs[1].run.notes == ("model.position: rope -> none (dropped base=10000.0)",)
        or "rope -> none" in runs[1].run.notes[0]
    )


def test_threads_and_names_are_no_part_of_the_identity(study) -> None:
    assert [p.run.identity for p in plan_study(study, threads=1)] == [p.run.identity for p in plan_study(study)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"control": "rop"}, "Did you mean 'rope'"),
        ({"arms": {"rope": []}}, "at least 2"),
        ({"seeds": [0, 0]}, "occurs twice"),
        ({"margn": 1}, "Did you mean 'margin'"),
        ({"arms": {"rope": [], "same": []}}, "the same experiment"),
        ({"arms": {"rope": [], "x": ["model/position=ropp"]}}, "Did you mean 'rope'"),
        ({"recipe": "nowhere"}, "no recipe"),
    ],
)
def test_bad_studies_are_explained(study, change: dict, expected: str) -> None:
    Path("bad.yaml").write_text(yaml.safe_dump(STUDY | change, sort_keys=False))
    with pytest.raises(ConfigError, match=expected):
        plan_study(read_study("bad.yaml"))


def test_runs_once_and_never_again(study) -> None:
    runs = plan_study(study)
    run_study(runs, jobs=2, say=lambda _: None, command=fake())
    assert all(result_of(p) for p in runs)
    said: list[str] = []
    run_study(runs, jobs=2, say=said.append, command=fake())
    assert len(started()) == 4
    assert said == ["4 of 4 runs are finished already"]


def test_a_recipe_of_several_sources_can_be_studied(study) -> None:
    sources = {name: {"source": {"name": "synthetic", "count": 48, "seed": i}} for i, name in enumerate("ab")}
    data = {"sources": sources, "mixture": [{"weights": {"a": 0.5, "b": 0.5}}], "seq_len": 32}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config(data=data)))
    runs = plan_study(study)
    run_study(runs, jobs=2, say=lambda _: None, command=fake())
    assert sorted(started()) == sorted(p.run.name for p in runs)
    assert all(result_of(p) for p in runs)


def test_a_failed_run_is_shown_the_others_finish_and_it_is_tried_again(study) -> None:
    runs = plan_study(study)
    with pytest.raises(RunError, match="the disk caught fire"):
        run_study(runs, jobs=2, say=lambda _: None, command=fake(0, "toy-none-seed0"))
    assert [result_of(p) is not None for p in runs] == [True, False, True, True]
    run_study(runs, jobs=1, say=lambda _: None, command=fake())
    assert sorted(started()) == sorted([p.run.name for p in runs] + ["toy-none-seed0"])


def test_a_summary_of_another_experiment_does_not_count(study) -> None:
    first = plan_study(study)[0]
    first.dir.mkdir(parents=True)
    (first.dir / "summary.json").write_text(json.dumps({"identity": "other", "bpb": 1.0}))
    assert result_of(first) is None
    (first.dir / "summary.json").write_text("{half")
    assert result_of(first) is None


def test_kill_of_the_runner_repeats_no_finished_run(study) -> None:
    code = (
        "import sys; from slm.study.plan import *; from slm.study.runner import *\n"
        "runs = plan_study(read_study('study.yaml'))\n"
        "run_study(runs, jobs=1, say=print, command=lambda r: [sys.executable, 'fake.py', str(r), '0.7'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    runs = plan_study(study)
    deadline = time.monotonic() + 60
    while sum(result_of(p) is not None for p in runs) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = [p.run.name for p in runs if result_of(p)]
    assert 2 <= len(finished) < 4
    run_study(runs, jobs=2, say=lambda _: None, command=fake())
    assert all(started().count(name) == 1 for name in finished)


def test_report_says_who_won(study, tmp_path: Path) -> None:
    runs = plan_study(study)
    with pytest.raises(RunError, match="nothing to compare yet"):
        report(study, runs)
    run_study(runs, jobs=2, say=lambda _: None, command=fake())
    result, page = write_report(study, runs)
    rope, none = result["arms"]
    assert (rope["verdict"], none["verdict"]) == ("control", "lose")
    assert none["delta"] == pytest.approx(0.5)
    assert none["residual_mismatch"] == {"params": 0, "flops_per_token": 0, "tokens": 0}
    assert none["sentence"].startswith("none loses to rope: +0.5000 bits per byte")
    html = page.read_text()
    assert "none loses to rope" in html
    assert "<b>matter</b>" not in html
    assert "<svg" in html
    assert "src=" not in html
    assert json.loads((page.parent / "report.json").read_text()) == result


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_diverged_on_the_way_has_a_shorter_curve_or_none(study, kept: bool) -> None:
    runs = plan_study(study)
    run_study(runs, jobs=2, say=lambda _: None, command=fake())
    for planned in runs if not kept else runs[:1]:
        log = planned.dir / "metrics.jsonl"
        log.write_text(json.dumps({"kind": "eval", "step": 5, "heldout_bpb": None}) + "\n" + '{"kind": "eval"}\n')
    page = write_report(study, runs)[1].read_text()
    assert ("<svg" in page) == kept


def test_report_of_an_unfinished_study_says_what_is_missing(study) -> None:
    runs = plan_study(study)
    with pytest.raises(RunError):
        run_study(runs, jobs=2, say=lambda _: None, command=fake(0, "toy-none-seed1"))
    result, page = write_report(study, runs)
    assert result["missing"] == ["none seed 1"]
    assert result["arms"][1]["verdict"] == "undecided"
    assert "Missing: none seed 1" in page.read_text()


@pytest.mark.slow
def test_a_real_study_from_the_command_line(study) -> None:
    command = [sys.executable, "-m", "slm", "study", "run", "study.yaml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [a["n"] for a in result["arms"]] == [2, 2]
    assert Path("runs/studies/toy/report.html").exists()
