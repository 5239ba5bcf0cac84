"""A log is read while another process writes it, cuts it back, or was killed in the middle of a line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from slm.config.errors import RunError
from slm.report.records import CONFIG, METRICS, SUMMARY, Records, RunFiles


def line(step: int, kind: str = "train", **more) -> str:
    return (
        json.dumps({"kind": kind, "step": step, "tokens": 100 * step, "loss": float(step), "heldout_bpb": 2.0, **more})
        + "\n"
    )


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


DAMAGE = {
    "no text": b"\xff\xfe\x00\x80",
    "zeros": b"\x00\x00",
    "a list": b"[1]",
    "a number": b"7",
    "no step": b'{"kind": "train", "tokens": 100}',
    "a step that is none": b'{"kind": "train", "step": "2", "tokens": 200}',
    "no tokens": b'{"kind": "train", "step": 2}',
    "a loss in words": b'{"kind": "train", "step": 2, "tokens": 200, "loss": "high"}',
    "no time": b'{"kind": "train", "step": 2, "tokens": 200, "seconds": null}',
    "nothing held out": b'{"kind": "eval", "step": 2}',
    "sources in a list": b'{"kind": "eval", "step": 2, "heldout_bpb": 1.0, "heldout_bpb_by_source": [1]}',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_lines_are_passed_over_and_counted(log: Path, damage: bytes) -> None:
    log.write_bytes(line(1).encode() + damage + b"\n" + line(3).encode())
    records = Records(log)
    records.poll()
    assert (steps(records), records.eval, records.damaged) == ([1, 3], [], 1)
    assert RunFiles(log.parent).notes == [f"{log}: 1 damaged line passed over"]
    log.write_text(line(1))
    records.poll()
    assert records.damaged == 0


def test_other_kinds_and_values_that_are_no_numbers_are_no_damage(log: Path) -> None:
    log.write_text(
        line(1, "profile") + line(2, loss=None, bpb=float("nan")) + line(2, "eval", heldout_bpb=float("inf"))
    )
    records = Records(log)
    records.poll()
    assert (steps(records), len(records.eval), records.damaged) == ([2], 1, 0)


def test_an_evaluation_that_was_no_number_is_one(log: Path) -> None:
    by_source = {"heldout_bpb_by_source": {"a": None, "b": 1.5}}
    log.write_text(line(1, "eval", heldout_bpb=1.0) + line(2, "eval", heldout_bpb=None, **by_source))
    records = Records(log)
    records.poll()
    assert records.damaged == 0
    assert math.isnan(records.eval[1]["heldout_bpb"])
    assert math.isnan(records.eval[1]["heldout_bpb_by_source"]["a"])


@pytest.mark.parametrize(
    ("file", "raw", "problem", "mend"),
    [
        (CONFIG, b"a: [", r"is damaged: no YAML at line 2, column \d", "checkpoints"),
        (CONFIG, b"- a\n", "is damaged: it holds no mapping but list", "checkpoints"),
        (CONFIG, b"", "is damaged: it holds no mapping but nothing", "checkpoints"),
        (CONFIG, b"a: \xff", "is damaged: it is no text in UTF-8", "checkpoints"),
        (CONFIG, b"model: 5", "is damaged: its 'model' is no mapping", "checkpoints"),
        (SUMMARY, b'{"steps": 1', r"is damaged: no JSON at line 1, column \d+ ", "Remove it"),
        (SUMMARY, b"[]", "is damaged: it holds no mapping but list", "Remove it"),
        (SUMMARY, b"{}", "is damaged: it doesn't say the run's steps and parameters", "Remove it"),
    ],
)
def test_a_damaged_file_is_named_and_counts_as_not_there(tmp_path: Path, file: str, raw: bytes, problem: str, mend: str) -> None:  # fmt: skip
    (tmp_path / METRICS).write_text(line(1))
    (tmp_path / CONFIG).write_text("name: a\n")
    (tmp_path / file).write_bytes(raw)
    run = RunFiles(tmp_path)
    assert (len(run.records.train), run.summary, len(run.notes)) == (1, None, 1)
    assert run.config == ({} if file == CONFIG else {"name": "a"})
    assert "\n" not in run.notes[0]
    with pytest.raises(RunError, match=rf"{file} {problem}.*\. .*{mend}"):
        run.check()
    (tmp_path / file).unlink()
    run.refresh()
    assert run.notes == []
    run.check()


def test_a_file_that_can_not_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()
    run = RunFiles(tmp_path)
    assert (run.records.train, run.notes) == ([], [f"{tmp_path / METRICS} can't be read: Is a directory"])
