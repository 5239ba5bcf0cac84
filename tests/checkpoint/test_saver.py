"""Saving in the background: what is written, what isn't, and what a failure leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from slm import checkpoint
from slm.checkpoint import Retention, Saver, writing
from slm.config.errors import RunError
from slm.train.parallel.world import World


def tensors(value: float, size: int = 1000) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model": {"a.weight": torch.full((7, size), value), "odd": torch.tensor([True, False, True])},
        "optimizer": {"a.weight/m": torch.full((7, size), value).bfloat16(), "a.weight/step": torch.tensor(2**60 + 1)},
        "ema": {"a.weight/ema": torch.full((7, size), -value)},
    }


def save(saver: Saver, step: int, value: float | None = None, **state: object) -> None:
    saver.save(step, tensors(step if value is None else value), {"step": step, **state}, "name: x\n", b"{}")


def names(run_dir: Path) -> list[str]:
    """What stands in the run's folder of checkpoints, without the pointer."""
    return sorted(p.name for p in (run_dir / "checkpoints").iterdir() if p.name != "latest")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before it is set."""
    real, opened = writing.write_tensors, threading.Event()

    def when_open(*arguments):
        assert opened.wait(60)
        return real(*arguments)

    monkeypatch.setattr(writing, "write_tensors", when_open)
    return opened


def test_what_is_written_is_what_stood_at_the_step_boundary(tmp_path: Path, gate: threading.Event) -> None:
    given = tensors(1.0)
    with Saver(tmp_path) as saver:
        saver.save(1, given, {"step": 1}, "name: x\n", b"{}")
        assert checkpoint.latest(tmp_path) is None
        for named in given.values():
            for t in named.values():
                t.fill_(0)  # the next steps
        gate.set()
    path = checkpoint.latest(tmp_path)
    assert path == saver.committed == tmp_path / "checkpoints" / "step-00000001"
    read = checkpoint.load(path)
    assert read.groups.keys() == {"model", "optimizer", "ema"}
    for group, named in tensors(1.0).items():
        for name, t in named.items():
            assert torch.equal(read.groups[group][name], t)
            assert read.groups[group][name].dtype == t.dtype


def test_a_second_save_waits_for_the_first_and_the_world_of_the_trainer_fits(
    tmp_path: Path, gate: threading.Event
) -> None:
    with Saver(tmp_path, Retention(last=5), World(0, 1, torch.device("cpu"))) as saver:
        save(saver, 1)
        threading.Timer(0.2, gate.set).start()
        save(saver, 2)
        assert names(tmp_path)[-1] == "step-00000001"
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_plain_safetensors_reads_it(tmp_path: Path) -> None:
    with Saver(tmp_path) as saver:
        save(saver, 1)
    assert saver.committed is not None
    for group, named in tensors(1).items():
        read = safetensors.torch.load_file(saver.committed / f"{group}.safetensors")
        assert read.keys() == named.keys()
        assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in named.items())


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("asking", ["check", "wait", "save"])
def test_a_failure_is_raised_once_at_the_next_question(
    tmp_path: Path, monkeypatch, asking: str, asynchronous: bool
) -> None:
    saver = Saver(tmp_path, asynchronous=asynchronous)
    save(saver, 1)
    saver.wait()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_tensors", full)

    def save_and_ask() -> None:
        save(saver, 2)
        if asking == "check":
            saver._thread.join()
        {"check": saver.check, "wait": saver.wait, "save": lambda: save(saver, 3)}[asking]()

    with pytest.raises(RunError) as caught:
        save_and_ask()
    text = str(caught.value)
    assert "step 2" in text
    assert "No space left on device" in text
    assert "model.safetensors" in text
    assert "step-00000001, is whole" in text
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000001"]
    checkpoint.verify(tmp_path / "checkpoints" / "step-00000001")
    saver.check()
    save(saver, 3)
    saver.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


KILLED = """
import sys, time, torch
from pathlib import Path
from slm.checkpoint import Saver, writing
real = writing.write_texts
def slowly(*a):
    print("writing", flush=True)
    time.sleep(60)
writing.write_texts = slowly
from slm.checkpoint import saver as module
module.write_texts = slowly
saver = Saver(Path(sys.argv[1]))
saver.save(2, {"model": {"w": torch.ones(1000)}}, {"step": 2}, "", b"{}")
saver.wait()
"""


def test_a_kill_while_writing_leaves_the_earlier_one_in_force_and_the_next_save_clears_up(tmp_path: Path) -> None:
    with Saver(tmp_path) as saver:
        save(saver, 1)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert names(tmp_path) == [".step-00000002.partial", "step-00000001"]
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoints" / "step-00000001"
    with Saver(tmp_path) as saver:
        save(saver, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


READ_ONLY = """
import os, sys, torch
from pathlib import Path
from slm.checkpoint import Saver
from slm.config.errors import RunError
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Saver(Path(sys.argv[1])).save(2, {"model": {"w": torch.ones(10)}}, {"step": 2}, "", b"{}")
except RunError as error:
    print(error)
"""


def test_a_directory_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as made:
        run_dir = Path(made)
        run_dir.chmod(0o755)
        with Saver(run_dir) as saver:
            save(saver, 1)
        (run_dir / "checkpoints").chmod(0o555)
        done = subprocess.run([sys.executable, "-c", READ_ONLY, made], capture_output=True, text=True)
        (run_dir / "checkpoints").chmod(0o755)
        assert "Can't save the checkpoint of step 2" in done.stdout, done.stderr
        assert "Permission denied" in done.stdout
        assert "step-00000001, is whole" in done.stdout
        assert names(run_dir) == ["step-00000001"]


def test_the_same_step_again_replaces_it_and_its_pin_stays(tmp_path: Path) -> None:
    with Saver(tmp_path) as saver:
        save(saver, 1)
        saver.wait()
        path = tmp_path / "checkpoints" / "step-00000001"
        checkpoint.pin(path, "a branch left here")
        save(saver, 1, value=5.0)
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.load(path).model["a.weight"][0, 0] == 5
    assert checkpoint.pinned(path) == "a branch left here"


def test_a_type_that_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"odd\.one: safetensors has no type for torch\.complex128"):
        Saver(tmp_path).save(1, {"model": {"odd.one": torch.zeros(2, dtype=torch.complex128)}}, {}, "", b"{}")


def test_a_leaving_run_does_not_wait_long_for_the_dead(tmp_path: Path, monkeypatch) -> None:
    """Rank 0 of two, and the other never writes."""
    from slm.checkpoint import saver as module

    class Pair:
        rank, size = 0, 2

        def any(self, flag: bool) -> bool:
            return flag

    monkeypatch.setattr(module, "GRACE", 0.1)
    saver = Saver(tmp_path, world=Pair())
    save(saver, 1)
    time.sleep(0.1)
    started = time.perf_counter()
    saver.close()
    assert time.perf_counter() - started < 60
    with pytest.raises(RunError, match="process 1 didn't finish its part"):
        saver.check()
    assert names(tmp_path) == []


def test_the_disk_is_told_before_the_name_is_given(tmp_path: Path, monkeypatch) -> None:
    """Every file and the directory are flushed before the rename, and the folder after it."""
    log: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (log.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd))[1]
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (log.append(f"-> {Path(b).name}"), replace(a, b))[1])
    with Saver(tmp_path) as saver:
        save(saver, 1)
    at = log.index("-> step-00000001")
    wanted = {"model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "config.yaml", "tokenizer.json", "manifest.json", ".step-00000001.partial"}  # fmt: skip
    assert wanted <= set(log[:at])
    assert log[at + 1] == "checkpoints"
