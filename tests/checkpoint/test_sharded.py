"""Four processes, five ways to hold a state: what one writes, any other reads, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from slm import checkpoint
from slm.config.errors import RunError

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(folder / "store"), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(4)
    ]  # fmt: skip
    errors = [p.communicate(timeout=300)[1] for p in processes]
    assert not any(p.returncode for p in processes), "\n".join(errors)
    return folder


def files(folder: Path) -> list[str]:
    path = checkpoint.latest(folder)
    assert path is not None
    return sorted(p.name for p in path.glob("model*.safetensors"))


def test_every_sharding_reads_every_other_bit_for_bit_and_a_failing_rank_stops_all(written: Path) -> None:
    assert json.loads((written / "report.json").read_text()) == []


def test_each_part_is_written_once(written: Path) -> None:
    assert files(written / "plain") == files(written / "replicas") == ["model.safetensors"]
    assert files(written / "fsdp of 2") == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert files(written / "hsdp") == ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    assert len(files(written / "columns")) == 4


def test_replicas_look_like_one_process(written: Path) -> None:
    one, many = (checkpoint.latest(written / way) for way in ("plain", "replicas"))
    assert one is not None
    assert many is not None
    a, b = (safetensors.torch.load_file(path / "model.safetensors") for path in (one, many))
    assert a.keys() == b.keys() == {"up", "down", "one", "norm", "stack"}
    assert a["up"].shape == (5, 3)


def test_pieces_are_joined_to_whole_tensors(written: Path) -> None:
    path = checkpoint.latest(written / "columns")
    assert path is not None
    generator = torch.Generator().manual_seed(3 + 2)
    read = checkpoint.load(path)
    expected = torch.randn(5, 3, generator=generator)
    assert torch.equal(read.model["up"], expected)
    assert torch.equal(read.optimizer["up/m"], (expected * 3).bfloat16())
    assert read.optimizer["up/step"].dtype == torch.int64


def test_a_missing_shard_is_noticed(written: Path, tmp_path: Path) -> None:
    """Also by a reader whose manifest lists it no more."""
    from slm.checkpoint.manifest import Manifest

    source = checkpoint.latest(written / "hsdp")
    assert source is not None
    path = tmp_path / "step-00000002"
    path.mkdir()
    for file in source.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    manifest = Manifest.read(path)
    lost = manifest.files.pop("model-00002-of-00004.safetensors")
    (path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(RunError, match=r"model-00002-of-00004\.safetensors: can't be read"):
        checkpoint.load(path)
    assert lost.size
    manifest.write(path)
    with pytest.raises(RunError, match="don't make one tensor"):
        checkpoint.load(path)
