"""Reading ranges, older formats, and damage of every kind."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from slm import checkpoint
from slm.checkpoint.layout import steps
from slm.checkpoint.manifest import BLOCK, CheckedFile, ChecksummedWriter
from slm.checkpoint.pieces import Region
from slm.checkpoint.reading import GroupReader
from slm.checkpoint.tensor_file import Part, write_tensors
from slm.config.errors import RunError


def write(run_dir: Path, step: int = 1, rows: int = 400, **state: object) -> Path:
    weights = {"big": torch.arange(rows * 1000.0).view(rows, 1000), "small": torch.tensor(2.0)}
    return checkpoint.save(run_dir, step, model=weights, optimizer={"big/m": torch.ones(3)}, state={"step": step, **state}, config="name: x\n", tokenizer=b"{}", keep=9)  # fmt: skip


def damage(file: Path, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 16
    file.write_bytes(raw)


def test_format_1_is_read(tmp_path: Path) -> None:
    """As the first version wrote it: files of safetensors' own writer, a manifest without a check of itself."""
    path = tmp_path / "checkpoints" / "step-00000007"
    path.mkdir(parents=True)
    weight = torch.randn(300, 1000)
    files = {
        "model.safetensors": safetensors.torch.save({"w": weight}),
        "optimizer.safetensors": safetensors.torch.save({"w/m": weight.bfloat16(), "w/step": torch.tensor(3.0)}),
        "state.json": b'{"step": 7}',
        "config.yaml": b"name: x\n",
        "tokenizer.model": b"\x0a",
    }
    entries = {}
    for name, raw in files.items():
        (path / name).write_bytes(raw)
        crcs = [zlib.crc32(raw[i : i + BLOCK]) for i in range(0, len(raw), BLOCK)]
        entries[name] = {"bytes": len(raw), "crc32": crcs}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "step": 7, "files": entries}))
    read = checkpoint.load(path)
    assert torch.equal(read.model["w"], weight)
    assert torch.equal(read.optimizer["w/m"], weight.bfloat16())
    assert (read.state, read.tokenizer) == ({"step": 7}, b"\x0a")
    assert checkpoint.newest(tmp_path) == path
    target = torch.zeros(300, 1000)
    checkpoint.read_into(path, "model", {"w": target})
    assert torch.equal(target, weight)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (path / "manifest.json").write_text('{"format": 3}')
    with pytest.raises(RunError, match="checkpoint format 3; this slm reads formats 1 and 2"):
        checkpoint.load(path)


@pytest.mark.parametrize("what", ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "tokenizer.json", "manifest.json"])  # fmt: skip
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damage_of_any_file_names_it(tmp_path: Path, what: str, how: str) -> None:
    path = write(tmp_path, rows=3)
    file = path / what
    if how == "flipped":
        damage(file, file.stat().st_size // 2)
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with pytest.raises(RunError, match=what.replace(".", r"\.")):
        checkpoint.verify(path)
    with pytest.raises(RunError, match=what.replace(".", r"\.")):
        checkpoint.load(path)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    path = write(tmp_path, rows=1)
    whole = (path / "manifest.json").read_bytes()
    for at in range(0, len(whole), 7):
        damage(path / "manifest.json", at)
        with pytest.raises(RunError, match=r"manifest\.json"):
            checkpoint.verify(path)
        (path / "manifest.json").write_bytes(whole)
    checkpoint.verify(path)


def test_only_the_blocks_of_what_is_wanted_are_read_and_they_are_verified(tmp_path: Path) -> None:
    path = write(tmp_path)  # 1.6 MB: two blocks
    damage(path / "model.safetensors", BLOCK + 1000)
    with GroupReader(path, "model") as reader:
        first = torch.zeros(100, 1000)
        reader.fill("big", first, Region((400, 1000), (0, 0), (100, 1000)))
        assert torch.equal(first, torch.arange(100_000.0).view(100, 1000))
        with pytest.raises(RunError, match=rf"model\.safetensors: damaged between byte {BLOCK} and"):
            reader.fill("big", first, Region((400, 1000), (300, 0), (100, 1000)))


def test_any_box_from_any_boxes(tmp_path: Path) -> None:
    """A tensor in uneven pieces along both dimensions, read back in all boxes."""
    whole = torch.arange(35).view(5, 7)
    cuts = [(slice(a, b), slice(c, d)) for a, b in ((0, 2), (2, 5)) for c, d in ((0, 3), (3, 4), (4, 7))]
    path = write(tmp_path)
    from slm.checkpoint.manifest import Manifest
    from slm.checkpoint.pieces import bytes_of

    manifest = Manifest.read(path)
    for i, (rows, columns) in enumerate(cuts):
        piece = whole[rows, columns].contiguous()
        region = Region((5, 7), (rows.start, columns.start), tuple(piece.shape))
        name = f"extra-{i + 1:05d}-of-00006.safetensors"
        manifest.files[name] = write_tensors(
            path / name, [Part("w", "I64", region, lambda piece=piece: bytes_of(piece))]
        )
    manifest.write(path)
    with GroupReader(path, "extra") as reader:
        assert torch.equal(reader.whole("w"), whole)
        for a in range(5):
            for b in range(7):
                for rows in range(1, 6 - a):
                    for columns in range(1, 8 - b):
                        out = torch.full((rows, columns), -1)
                        reader.fill("w", out, Region((5, 7), (a, b), (rows, columns)))
                        assert torch.equal(out, whole[a : a + rows, b : b + columns])


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"huge": torch.zeros(2)}, "has no 'huge' among its model tensors"),
        ({"big": torch.zeros(400, 999)}, r"'big' is F32 of shape \(400, 1000\) there"),
        ({"small": torch.tensor(1.0).bfloat16()}, "and BF16 of shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], why: str) -> None:
    with pytest.raises(RunError, match=why):
        checkpoint.read_into(write(tmp_path), "model", tensors)


def test_a_target_with_gaps_in_memory(tmp_path: Path) -> None:
    target = torch.zeros(1000, 400).t()
    checkpoint.read_into(write(tmp_path), "model", {"big": target})
    assert torch.equal(target, torch.arange(400_000.0).view(400, 1000))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_checksums_at_the_edges_of_blocks(tmp_path: Path, size: int) -> None:
    raw = bytes(i % 251 for i in range(size))
    with ChecksummedWriter(tmp_path / "x") as file:
        for i in range(0, size, 700_001):
            file.write(raw[i : i + 700_001])
    assert file.entry.size == size
    assert file.entry.crc32 == [zlib.crc32(raw[i : i + BLOCK]) for i in range(0, size, BLOCK)]
    with CheckedFile(tmp_path, "x", file.entry) as back:
        assert back.read(0, size) == raw
        assert back.read(max(0, size - 3), 9) == raw[-3:]


def test_a_damaged_newest_is_left_only_with_consent_and_that_is_said(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    folder = tmp_path / "checkpoints"
    damage(folder / "step-00000004" / "model.safetensors", 2000)
    damage(folder / "step-00000003" / "state.json", 3)
    with pytest.raises(RunError) as caught:
        checkpoint.newest(tmp_path)
    text = str(caught.value)
    assert "step-00000004/model.safetensors: damaged between byte 0 and" in text
    assert "log.resume=latest-valid" in text
    assert "step-00000002 is whole" in text
    said: list[str] = []
    assert checkpoint.newest(tmp_path, consent=True, say=said.append) == folder / "step-00000002"
    assert "step-00000004/model.safetensors: damaged" in said[0]
    assert "damaged-step-00000004" in said[1]
    assert [p.name for p in steps(folder)] == ["step-00000001", "step-00000002"]
    assert checkpoint.newest(tmp_path) == folder / "step-00000002"
    for step in (1, 2):
        damage(folder / f"step-{step:08d}" / "manifest.json", 3)
    with pytest.raises(RunError, match=r"No checkpoint of .* is whole"):
        checkpoint.newest(tmp_path, consent=True)
    assert checkpoint.newest(tmp_path / "nothing") is None
