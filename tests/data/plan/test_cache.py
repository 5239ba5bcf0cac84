"""What is kept on disk is whole or it is not used."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.config.errors import RunError
from slm.data.plan.cache import BLOCK, Arrays, Writer, cached

DTYPE = np.dtype([("a", "<i8"), ("b", "<u4"), ("c", "<u4")])


def make(writer: Writer) -> dict[str, int]:
    """Several blocks of records and of numbers, in uneven parts."""
    for i in range(7):
        part = np.zeros(1000 + i, dtype=DTYPE)
        part["a"], part["b"] = np.arange(len(part)) * i, i
        writer.append("records", part)
        writer.append("numbers", np.arange(500 * i))
    writer.append("empty", np.empty(0, dtype=np.uint8))
    return {"answer": 42}


def contents(arrays: Arrays) -> tuple[bytes, bytes]:
    return tuple(arrays[name].read(0, len(arrays[name])).tobytes() for name in ("records", "numbers"))  # type: ignore[return-value]


def test_memory_and_disk_hold_the_same(tmp_path: Path) -> None:
    made, kept = cached(None, "k", {}, make), cached(tmp_path, "k", {}, make)
    again = cached(tmp_path, "k", {}, lambda _: pytest.fail("made twice"))
    assert contents(made) == contents(kept) == contents(again)
    assert again.info == {"answer": 42}
    assert len(again["empty"]) == 0
    indices = np.array([6000, 3, 3, 1024])
    assert again["records"].take(indices).tobytes() == made["records"].data[indices].tobytes()
    again.verify()


def test_another_description_is_not_taken_for_it(tmp_path: Path) -> None:
    cached(tmp_path, "k", {"seq_len": 8}, make)
    said: list[str] = []
    cached(tmp_path, "k", {"seq_len": 9}, make, said.append)
    assert "made again" in said[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_is_never_believed(tmp_path: Path, data: st.DataObject) -> None:
    whole = contents(cached(tmp_path, "k", {}, make))
    file = data.draw(st.sampled_from(sorted((tmp_path / "k").iterdir(), key=lambda p: p.name)))
    raw = bytearray(file.read_bytes())
    if not raw:
        return
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    said: list[str] = []
    try:
        got = contents(cached(tmp_path, "k", {}, make, said.append))
    except RunError as error:
        refused = str(error)
        got = contents(cached(tmp_path, "k", {}, make, said.append))  # the next start
    else:
        refused = ""
    assert said  # it was noticed, at opening or when it was read, and made again
    assert not refused or (file.name in refused and "made anew" in refused and "earlier run" in said[0])
    assert got == whole


@pytest.mark.parametrize("name", ["header.json", "checks.bin", "records.bin", "numbers.bin"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_half_a_cache_is_none(tmp_path: Path, name: str, damage: str) -> None:
    whole, file = contents(cached(tmp_path, "k", {}, make)), tmp_path / "k" / name
    if damage == "missing":
        file.unlink()
    else:
        os.truncate(file, 0 if damage == "empty" else file.stat().st_size - 1)
    with pytest.warns(UserWarning, match="made again"):
        assert contents(cached(tmp_path, "k", {}, make)) == whole


def test_what_died_half_way_is_cleared_and_made_again(tmp_path: Path) -> None:
    def dies(writer: Writer) -> dict[str, int]:
        make(writer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "k", {}, dies)
    assert not list(tmp_path.glob("k*/**"))
    (tmp_path / "k.abc.partial").mkdir()  # of a process that was killed
    cached(tmp_path, "k", {}, make)
    assert not list(tmp_path.glob("*.partial"))


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[bytes, bytes]] = context.Queue()
    workers = [context.Process(target=lambda: results.put(contents(cached(tmp_path, "k", {}, make)))) for _ in range(4)]
    for worker in workers:
        worker.start()
    got = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert got == {contents(cached(None, "k", {}, make))}


def test_without_locks_the_first_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("no locks here")

    def beaten(writer: Writer) -> dict[str, int]:
        cached(tmp_path, "k", {}, make)  # another process is faster
        return make(writer)

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert contents(cached(tmp_path, "k", {}, beaten)) == contents(cached(None, "k", {}, make))
    assert not list(tmp_path.glob("*.partial"))


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cache can't be written.*impl\.data_dir"):
        cached(tmp_path / "file", "k", {}, make)


def test_opening_reads_no_array(tmp_path: Path) -> None:
    """A damaged block is an error when it is touched, and only then."""
    cached(tmp_path, "k", {}, make)
    path = tmp_path / "k" / "records.bin"
    raw = bytearray(path.read_bytes())
    raw[BLOCK + 5] ^= 1
    path.write_bytes(raw)
    records = cached(tmp_path, "k", {}, make)["records"]
    records.read(0, BLOCK // 16)
    records.take(np.array([2 * BLOCK // 16]))
    with pytest.raises(RunError, match=rf"records\.bin: bytes {BLOCK} to {2 * BLOCK}"):
        records.read(BLOCK // 16, BLOCK // 16 + 1)
    with pytest.raises(RunError, match=r"records\.bin"):
        records.verify()


def test_header_is_plain_json(tmp_path: Path) -> None:
    cached(tmp_path, "k", {"seq_len": 8}, make)
    assert json.loads((tmp_path / "k" / "header.json").read_text())["body"]["made_from"] == {"seq_len": 8}
