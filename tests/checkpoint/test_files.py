from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from slm import checkpoint
from slm.checkpoint.manifest import BLOCK
from slm.config.errors import RunError


def write(run_dir: Path, step: int, keep: int = 2) -> Path:
    weights = {"a.weight": torch.full((300, 1000), float(step)), "b": torch.tensor(1.5)}
    return checkpoint.save(run_dir, step, model=weights, optimizer={"a.weight/m": torch.ones(3)}, state={"step": step, "x": 0.1}, config="name: x\n", tokenizer=b"{}", keep=keep)  # fmt: skip


def test_comes_back_as_written(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    read = checkpoint.load(path)
    assert torch.equal(read.model["a.weight"], torch.full((300, 1000), 7.0))
    assert read.state == {"step": 7, "x": 0.1}
    assert (read.config, read.tokenizer) == ("name: x\n", b"{}")
    assert (path.parent / "latest").read_text() == path.name


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        write(tmp_path, step)
    assert [p.name for p in sorted((tmp_path / "checkpoints").glob("step-*"))] == ["step-00000003", "step-00000010"]
    assert checkpoint.latest(tmp_path).name == "step-00000010"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "tokenizer.json"]
)
def test_a_flipped_bit_names_file_and_offset_and_what_to_do(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    raw = bytearray((path / name).read_bytes())
    at = len(raw) - 1
    raw[at] ^= 4
    (path / name).write_bytes(raw)
    with pytest.raises(RunError) as caught:
        checkpoint.load(path)
    text = str(caught.value)
    assert name in text
    assert f"between byte {at // BLOCK * BLOCK} and {len(raw)}" in text
    assert "log.resume=latest-valid" in text


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    model = path / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(RunError, match="bytes long, the manifest says"):
        checkpoint.load(path)
    model.unlink()
    with pytest.raises(RunError, match="can't be read"):
        checkpoint.verify(path)


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_full_disk_leaves_the_previous_checkpoint_valid(tmp_path: Path, monkeypatch, fails_at: int) -> None:
    before = write(tmp_path, 1)
    calls = 0
    real = os.fsync

    def full(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) == before
    checkpoint.verify(before)
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    assert write(tmp_path, 2).exists()  # and with room again it works


def test_a_really_full_file_system(tmp_path: Path) -> None:
    """The kernel's own refusal: a file size limit in a child process."""
    import subprocess
    import sys

    before = write(tmp_path, 1)
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from slm import checkpoint\n"
        "from slm.config.errors import RunError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    checkpoint.save(Path(sys.argv[1]), 2, model={'w': torch.ones(200_000)}, optimizer={}, state={}, config='', tokenizer=b'')\n"
        "except RunError as error:\n"
        "    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "Can't save the checkpoint of step 2" in out
    assert "step-00000001, is whole" in out
    assert checkpoint.latest(tmp_path) == before


def test_resolve_knows_runs_and_steps_and_lists_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "runs" / "mine", 3)
    assert checkpoint.resolve(tmp_path / "runs" / "mine") == path
    assert checkpoint.resolve("mine").name == path.name
    assert checkpoint.resolve(path) == path
    with pytest.raises(RunError, match=r"Runs under runs/ here, the nearest names first: mine\."):
        checkpoint.resolve("yours")


def test_what_is_not_there_leads_to_what_is(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "tiny", 3)
    for member in ("staged/1-short", "staged/2-long", "sweep/train.seed=0", "sweep/train.seed=1"):
        write(tmp_path / "runs" / member, 3)
    for asked in ("staged", "runs/staged"):
        with pytest.raises(
            RunError, match=r"runs/staged holds runs.*: runs/staged/1-short, runs/staged/2-long\. Name one"
        ):
            checkpoint.resolve(asked)
    with pytest.raises(RunError, match=r"runs/sweep holds runs.*: runs/sweep/train.seed=0, runs/sweep/train.seed=1\."):
        checkpoint.run_dir_of("sweep")
    with pytest.raises(RunError, match=r"Did you mean 'tiny'\?"):
        checkpoint.resolve("runs/tinny")
    with pytest.raises(RunError, match=r"Did you mean 'staged/2-long'\?"):
        checkpoint.resolve("staged/2-lnog")


def test_a_long_list_of_runs_is_cut(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / "runs" / f"r{number:02}", 3)
    with pytest.raises(RunError, match=r"nearest names first: r00, .*r09, and 2 more\.$"):
        checkpoint.resolve("elsewhere")


def test_a_half_written_directory_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "checkpoints" / ".step-00000009.partial").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-00000001"
