"""Copies of the records: wandb (the real package offline, and fakes that break) and TensorBoard, read back."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from slm.train import mirror_wandb
from slm.train.mirror import Mirrors, scalars

TRAIN = {"kind": "train", "step": 1, "loss": 3.5, "mfu_causal": None, "skipped": 0}
EVAL = {"kind": "eval", "step": 2, "heldout_bpb": 1.5, "heldout_bpb_by_source": {"web": 1.25}}
GOOD = """
import json, os, pathlib
class Settings:
    def __init__(self, **_): pass
class Run:
    def write(self, *what):
        with open(os.environ["SAID"], "a") as f: f.write(json.dumps(what) + chr(10))
    def define_metric(self, *a, **k): self.write("define", a, k)
    def log(self, values): self.write("log", values)
    def finish(self, exit_code=0): self.write("finish", exit_code)
def init(**kwargs):
    kwargs.pop("settings"); run = Run(); run.write("init", kwargs); return run
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a package `wandb` of the given source; what it is called with goes to the file that is returned."""
    monkeypatch.setenv("SAID", str(tmp_path / "said"))

    def make(source: str) -> Path:
        (tmp_path / "wandb.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
        return tmp_path / "said"

    return make


def mirrors(tiny, said: list[str], **log) -> Mirrors:
    run = tiny(**{f"log__{key}": value for key, value in log.items()})
    return Mirrors.of(run, Path.cwd(), 0, said.append)


def lines(file: Path) -> list[list]:
    import json

    return [json.loads(line) for line in file.read_text().splitlines()]


def test_wandb_gets_every_record_over_its_own_step(tiny, fake) -> None:
    file, said = fake(GOOD), []
    both = mirrors(tiny, said, wandb={"mode": "online"})
    both.write(TRAIN)
    both.write(EVAL)
    both.close()
    assert said == []
    calls = lines(file)
    assert (calls[0][1]["id"], calls[0][1]["resume"]) == (f"tiny-{tiny().identity}", "allow")
    assert ["define", ["train/*"], {"step_metric": "step"}] in calls
    assert [c[1] for c in calls if c[0] == "log"] == [
        {"step": 1, "train/loss": 3.5, "train/skipped": 0},
        {"step": 2, "eval/heldout_bpb": 1.5, "eval/heldout_bpb_by_source/web": 1.25},
    ]
    assert calls[-1] == ["finish", 0]


def test_a_killed_trainer_leaves_a_run_that_failed(tiny, fake) -> None:
    file = fake(GOOD)
    mirror = mirror_wandb.WandbMirror(tiny(), Path.cwd())
    mirror._child.stdin.close()  # what the system does for a process that is killed
    mirror._child.wait(timeout=60)
    assert lines(file)[-1] == ["finish", 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_for_the_trainer_does_not_end_the_copy(tiny, fake, number: int) -> None:
    file, said = fake(GOOD), []
    copy = mirrors(tiny, said, wandb={"mode": "online"})
    copy.write(TRAIN)
    deadline = time.monotonic() + 60
    while not (file.exists() and '"log"' in file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    copy._standing["wandb"]._child.send_signal(number)
    copy.write(EVAL)
    copy.close()
    assert said == []
    assert lines(file)[-1] == ["finish", 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (GOOD + "def init(**_): raise ConnectionError('no network')\n", "ConnectionError: no network"),
        (GOOD.replace("def log(self, values):", "def log(self, values): raise SystemExit('quota');"), "SystemExit: quota"),
        ("import os; os._exit(9)\n", "its process ended."),
    ],
)  # fmt: skip
def test_wandb_that_breaks_is_switched_off_with_one_warning(tiny, fake, source: str, message: str) -> None:
    fake(source)
    said: list[str] = []
    copy = mirrors(tiny, said, wandb={"mode": "online"})
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        copy.write(TRAIN)
        time.sleep(0.02)
    copy.write(TRAIN)
    copy.close()
    assert said == [f"wandb is off for the rest of this run: {message}"]


def test_wandb_that_breaks_at_the_end_is_said(tiny, fake) -> None:
    fake(GOOD.replace("def finish(self, exit_code=0):", "def finish(self, exit_code=0): raise OSError('late');"))
    said: list[str] = []
    mirrors(tiny, said, wandb={"mode": "online"}).close()
    assert said == ["wandb is off for the rest of this run: OSError: late"]


def test_wandb_that_hangs_costs_a_bounded_time(tiny, fake, monkeypatch) -> None:
    fake("import time; time.sleep(600)\n")
    monkeypatch.setattr(mirror_wandb, "CLOSE_SECONDS", 0.3)
    said: list[str] = []
    copy = mirrors(tiny, said, wandb={"mode": "online"})
    child = copy._standing["wandb"]._child
    began = time.monotonic()
    for _ in range(3000):  # far more than a pipe holds
        copy.write(TRAIN)
    copy.close()
    assert time.monotonic() - began < 10
    assert "did not finish within" in said[0]
    assert child.poll() is not None


def test_wandb_that_hangs_does_not_fill_the_memory(tiny, fake, monkeypatch) -> None:
    fake("import time; time.sleep(600)\n")
    monkeypatch.setattr(mirror_wandb, "BACKLOG_BYTES", 1000)
    said: list[str] = []
    copy = mirrors(tiny, said, wandb={"mode": "online"})
    while not said:
        copy.write(TRAIN)
    assert said == ["wandb is off for the rest of this run: it hangs, and takes no more records."]
    copy.close()


def test_what_is_not_installed_is_said_before_training(tiny, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said: list[str] = []
    copy = mirrors(tiny, said, wandb={"mode": "offline"}, tensorboard=True)
    copy.write(TRAIN)
    copy.close()
    assert [s.rpartition(": ")[2] for s in said] == ["pip install 'slm[wandb]'", "pip install 'slm[tb]'"]


def leveldb_records(log: bytes) -> list[bytes]:
    """The records of a LevelDB log that fits one block of 32 KiB: checksum, u16 length, type (1: whole), data."""
    assert len(log) < 32768 - 7
    records, at = [], 0
    while at < len(log):
        length = int.from_bytes(log[at + 4 : at + 6], "little")
        assert log[at + 6] == 1
        records.append(log[at + 7 : at + 7 + length])
        at += 7 + length
    return records


@pytest.mark.slow
def test_wandb_offline_holds_every_record(tiny) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    said: list[str] = []
    copy = mirrors(tiny, said, wandb={"mode": "offline"})
    copy.write(TRAIN)
    copy.write(EVAL)
    copy.close()
    assert said == []
    [file] = Path.cwd().glob("wandb/offline-run-*/*.wandb")
    logged = []
    for raw in leveldb_records(file.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            logged.append({(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item})
    assert [(row["step"], row.get("train/loss"), row.get("eval/heldout_bpb")) for row in logged] == [
        ("1", "3.5", None),
        ("2", None, "1.5"),
    ]


def test_tensorboard_is_cut_back_with_the_log(tiny) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, said = tiny(log__tensorboard=True), []
    for start, steps, loss in ((0, range(1, 8), 1.0), (4, range(5, 7), 2.0)):
        copy = Mirrors.of(run, Path.cwd(), start, said.append)
        for step in steps:
            copy.write(TRAIN | {"step": step, "loss": loss})
        copy.close()
    assert said == []
    events = EventAccumulator("tensorboard")
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/skipped"]
    found = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]


def test_flat_names() -> None:
    assert scalars(EVAL) == {"eval/heldout_bpb": 1.5, "eval/heldout_bpb_by_source/web": 1.25}
