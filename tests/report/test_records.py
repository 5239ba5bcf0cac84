"""A log is read while another process writes it, cuts it back, or was killed in the middle of a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from slm.config.errors import ConfigError
from slm.report.records import Records, RunFiles, find_run


def line(step: int, kind: str = "train", **more) -> str:
    return json.dumps({"kind": kind, "step": step, "loss": float(step), **more}) + "\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def steps(records: Records) -> list[int]:
    return [r["step"] for r in records.train]


def test_it_follows_a_log_that_grows(log: Path) -> None:
    records = Records(log)
    assert not records.poll()
    with log.open("a", buffering=1) as file:
        file.write(line(1) + line(2)[:10])
        assert records.poll()
        assert steps(records) == [1]
        assert not records.poll()
        file.write(line(2)[10:])
        assert records.poll()
    assert steps(records) == [1, 2]


def test_only_what_is_new_is_read(log: Path) -> None:
    log.write_text(line(1))
    records = Records(log)
    records.poll()
    first = records.train[0]
    with log.open("a") as file:
        file.write(line(2))
    records.poll()
    assert records.train[0] is first


def test_a_log_that_is_cut_back_is_read_anew(log: Path) -> None:
    log.write_text("".join(line(s) for s in range(1, 9)) + line(8, "eval"))
    records = Records(log)
    records.poll()
    shorter = log.with_suffix(".partial")
    shorter.write_text(line(1) + line(2))
    os.replace(shorter, log)  # what a trainer that resumes does
    assert records.poll()
    assert (steps(records), records.eval) == ([1, 2], [])
    log.write_text(line(1))  # in place, too
    records.poll()
    assert steps(records) == [1]
    log.unlink()
    assert records.poll()
    assert steps(records) == []


def test_steps_that_are_made_again_replace_the_old_ones(log: Path) -> None:
    log.write_text("".join(line(s) for s in (1, 2, 3, 4, 3, 4, 5)))
    records = Records(log)
    records.poll()
    assert steps(records) == [1, 2, 3, 4, 5]


def test_damage_and_unknown_kinds_are_passed_over(log: Path) -> None:
    log.write_text(line(1) + "\x00\x00\n" + "[1]\n" + line(2, "profile") + '{"kind": "train"}\n' + line(3))
    records = Records(log)
    records.poll()
    assert steps(records) == [1, 3]


def test_a_run_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    place = Path("runs/sweep/a")
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("name: sweep/a\n")
    assert find_run("runs/sweep/a") == place
    assert find_run("sweep/a") == place
    assert RunFiles(place).name == "sweep/a"
    with pytest.raises(ConfigError, match=r"no run 'sweep/b'.*Did you mean 'sweep/a'"):
        find_run("sweep/b")


def test_no_run_at_all_says_how_to_make_one() -> None:
    with pytest.raises(ConfigError, match="slm train RECIPE"):
        find_run("x")
