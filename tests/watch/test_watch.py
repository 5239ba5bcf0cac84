"""`slm watch`: how a run stands is told from its files alone."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from slm.cli.main import app
from slm.run import Run
from slm.train.course import Course
from slm.watch.facts import Length, flops_per_token, length
from slm.watch.lock import held
from slm.watch.plot import Series, number, plot
from slm.watch.state import STALLED_SECONDS, Watched
from slm.watch.view import frame

RAMP = {"start": 32, "over": "2560 tokens"}


def record(step: int, **more) -> dict:
    return {
        "kind": "train", "step": step, "tokens": 256 * step, "tokens_per_param": 256 * step / 20_000, "loss": 8 / step, "bpb": 4 / step,
        "lr": 1e-3, "grad_norm": 1.5, "tokens_per_s": 512.0, "mfu_causal": None, "mfu_palm": None, "skipped": 0, "seconds": 0.5 * step,
    } | more  # fmt: skip


@pytest.fixture
def run_dir(tiny) -> Path:
    place = Path("runs/tiny")
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(tiny(train__budget={"steps": 20}).model_dump(mode="json")))
    write(place, [*(record(s) for s in range(1, 11)), *({"kind": "eval", "step": s, "heldout_bpb": b} for s, b in ((4, 1.5), (8, 1.75)))])  # fmt: skip
    (place / "checkpoints" / "step-00000008").mkdir(parents=True)
    (place / "checkpoints" / ".step-00000010.partial").mkdir()
    return place


def write(place: Path, records: list[dict], tail: str = "") -> None:
    (place / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)


def age(place: Path, seconds: float) -> None:
    for file in place.iterdir():
        os.utime(file, (time.time() - seconds,) * 2)


def text(*places: Path, width: int = 110, height: int = 40) -> str:
    runs = [Watched(p) for p in places]
    out = Console(file=io.StringIO(), width=width, height=height)
    out.print(frame(runs, [r.look() for r in runs], width, height))
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_everything_there_is_to_know(run_dir: Path, tiny) -> None:
    now = Watched(run_dir).look()
    assert (now.identity, now.params) == (tiny(train__budget={"steps": 20}).identity, 20_000)
    assert (now.step, now.total_steps, now.eta) == (10, 20, 10 * 256 / 512)
    assert (now.heldout_bpb, now.best_heldout_bpb, now.best_step) == (1.75, 1.5, 4)
    assert now.checkpoint_step == 8
    shown = text(run_dir)
    for part in ("tiny", now.identity, "20k parameters", "step 10 / 20", "50%", "ETA 5.0 s", "1.7500 (best 1.5000 at step 4)", "step 8,", "512"):  # fmt: skip
        assert part in shown, part
    assert "MFU" not in shown
    assert sum(0x2800 < ord(c) < 0x2900 for c in shown) > 50


def test_states(run_dir: Path) -> None:
    def state() -> str:
        return Watched(run_dir).look().state

    lock = (run_dir / ".lock").open("w")
    print(socket.gethostname(), os.getpid(), file=lock, flush=True)
    assert state() == "interrupted"  # the lock says that it was here, and nobody holds it
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert held(run_dir)
    assert state() == "running"
    age(run_dir, STALLED_SECONDS + 10)
    assert state() == "stalled"
    assert "stalled: no record for 3 min 1" in text(run_dir)
    lock.close()
    assert state() == "interrupted"
    (run_dir / "summary.json").write_text(json.dumps({"steps": 10, "params": {"unique": 7}, "interrupted": False, "bpb": 1.25}))  # fmt: skip
    assert state() == "finished"
    assert "final 1.2500" in text(run_dir)


def test_a_run_on_another_machine_is_judged_by_its_log(run_dir: Path) -> None:
    (run_dir / ".lock").write_text("elsewhere 1\n")
    assert held(run_dir) is None
    assert Watched(run_dir).look().state == "running"
    age(run_dir, STALLED_SECONDS + 10)
    assert Watched(run_dir).look().state == "stalled"
    write(run_dir, [record(s, seconds=60.0 * s) for s in range(1, 11)])  # it writes once a minute
    age(run_dir, STALLED_SECONDS + 10)
    assert Watched(run_dir).look().state == "running"


def test_looking_leaves_the_lock_free(run_dir: Path) -> None:
    (run_dir / ".lock").touch()
    with (run_dir / ".lock").open("w") as lock:
        held(run_dir)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it were taken


@pytest.mark.parametrize("records", [[], [record(1)], [record(1, loss=math.nan, bpb=math.inf)]])
@pytest.mark.parametrize("width", [40, 110, 300])
def test_a_frame_of_whatever_is_there(run_dir: Path, records: list[dict], width: int) -> None:
    write(run_dir, records, '{"kind": "tra')
    shown = text(run_dir, width=width)
    assert f"step {len(records)}" in shown
    assert max(map(len, shown.splitlines())) <= width


def test_a_frame_fits_the_screen(run_dir: Path) -> None:
    assert len(text(run_dir, width=120, height=30).splitlines()) <= 30


DAMAGE = {
    "config.yaml": (b"a: [", b"- a", b"", b"\xff", b"model: 5", b"model: {}\ntokenizer: {}\ndata: {at: 2026-01-01}\ntrain: {distill: 5}"),
    "summary.json": (b'{"steps": 10, "pa', b"[]", b"{}", b'{"steps": 10, "params": 7}', b"\xff"),
    "metrics.jsonl": (b'{"kind": "train"}\n', b"7\n", b"\xff\xfe\n", b'{"kind": "train", "step": 1, "tokens": 1, "loss": "x"}\n'),
    ".lock": (b"\xff\n",),
}  # fmt: skip


@pytest.mark.parametrize(("file", "raw"), [(file, raw) for file, raws in DAMAGE.items() for raw in raws])
def test_a_damaged_run_hides_no_other(run_dir: Path, file: str, raw: bytes) -> None:
    bad = run_dir.with_name("bad")
    shutil.copytree(run_dir, bad)
    (bad / "checkpoints" / "step-abc").mkdir()
    old = (bad / file).read_bytes() if file == "metrics.jsonl" else b""
    (bad / file).write_bytes(raw + old)
    now = Watched(bad).look()
    assert (now.step, now.checkpoint_step) == (10, 8)
    named = f"runs/bad/{file}"
    shown = text(run_dir, bad, width=160)
    assert shown.count("step 10") >= 2
    if file == ".lock" or b"distill" in raw:
        assert now.problem is None
    else:
        assert (now.problem or "").startswith(named)
        assert sum(named in line for line in shown.splitlines()) == 1


def test_a_frame_with_a_problem_fits_the_screen(run_dir: Path) -> None:
    (run_dir / "summary.json").write_text("[" * 500)
    shown = text(run_dir, width=120, height=30).splitlines()
    assert len(shown) <= 30
    assert max(map(len, shown)) <= 120


def test_two_runs_share_their_charts(run_dir: Path) -> None:
    other = Path("runs/other")
    other.mkdir()
    write(other, [record(s, loss=9.0) for s in range(1, 30)])
    shown = text(run_dir, other)
    assert "other" in shown
    assert shown.count("loss, nats per token") == 1
    assert "held-out bits per byte" in shown


def test_the_command(run_dir: Path) -> None:
    def call(*arguments: str) -> str:
        return CliRunner().invoke(app, ["watch", *arguments], catch_exceptions=False).stdout

    assert "step 10 / 20" in call("tiny")  # no terminal: one frame
    write(run_dir, [record(1, loss=math.nan)])
    one = json.loads(call("tiny", "--json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (one["step"], one["loss"], one["lr"]) == (1, None, 1e-3)
    assert one["problem"] is None
    assert [r["name"] for r in json.loads(call("tiny", "runs/tiny", "--json"))["runs"]] == ["tiny", "tiny"]


@pytest.mark.parametrize(
    "budget",
    [
        {"steps": 7},
        {"tokens": 10_000},
        {"tokens_per_param": 3},
        {"tokens_per_param": 3, "params": "non_embedding"},
        {"flops": 1e10},
        {"hours": 0.01, "tokens_per_s": 1000},
    ],
)
@pytest.mark.parametrize("changes", [{}, {"train__batch_ramp": RAMP}, {"train__until": 3}, {"train__batch_ramp": RAMP, "train__until": 3}])  # fmt: skip
def test_the_length_of_a_run(tiny, budget: dict, changes: dict) -> None:
    run: Run = tiny(train__budget=budget, **changes)
    costs = run.costs()
    course = Course.of(run, costs)
    config = run.model_dump(mode="json")
    for params in (costs.params["unique"], None):
        assert length(config, params) == Length(course.end, course.tokens(course.end))
    assert flops_per_token(config) == costs.flops_per_token["train"]


def test_a_ramp_has_more_steps_than_its_budget(tiny, run_dir: Path) -> None:
    config = tiny(train__budget={"steps": 24}, train__batch_ramp=RAMP).model_dump(mode="json")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    write(run_dir, [record(36, tokens=4000)])
    now = Watched(run_dir).look()
    assert (now.step, now.total_steps) == (36, 45)
    assert now.eta == (24 * 256 + 128 - 4000) / 512  # the last batch is a whole one


def test_a_stage_ends_where_its_part_of_the_run_does(tiny, run_dir: Path) -> None:
    config = tiny(train__budget={"steps": 24}, train__until=12).model_dump(mode="json")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    now = Watched(run_dir).look()
    assert (now.step, now.total_steps, now.eta) == (10, 12, 2 * 256 / 512)


def test_a_config_that_is_not_understood_has_no_length(tiny) -> None:
    config = tiny(train__budget={"flops": 1e10}).model_dump(mode="json")
    config["model"]["attention"]["name"] = "somebodys-own"
    assert length(config, 5) is None
    assert flops_per_token(config) is None
    assert length({}, 5) is None
    for train in ({"budget": 5}, {"budget": {"steps": 5}, "batch_tokens": "many"}, {"budget": {"steps": 5}, "batch_tokens": 2, "until": "3"}):  # fmt: skip
        assert length({"train": train}, 5) is None


def test_a_curve_falls_from_left_to_right() -> None:
    rows = plot("t", [Series(list(range(100)), [100.0 - i for i in range(100)])], 49, 6).plain.splitlines()[1:7]
    centres = [sum(i for i, c in enumerate(r[9:]) if c != " ") / max(1, sum(c != " " for c in r[9:])) for r in rows]
    assert centres == sorted(centres)
    assert centres[0] < 8
    assert centres[-1] > 30


def test_the_first_steps_do_not_flatten_the_rest() -> None:
    y = [1000.0] + [2 + math.sin(i / 5) for i in range(200)]
    shown = plot("t", [Series(list(range(201)), y)], 60, 8).plain
    assert "1000" not in shown


def test_labels_are_short() -> None:
    values = (0, 3.14159, 12_345, 1.5e9, 1e-5, 0.25, -3.2)
    assert [number(v) for v in values] == ["0", "3.142", "12.3k", "1.5G", "1.0e-05", "0.25", "-3.2"]
