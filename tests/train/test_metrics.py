"""metrics.jsonl: what is written, what damage costs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from slm.train.metrics import MetricsLog, read_metrics


def write(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(lines))


def record(step: int) -> bytes:
    return json.dumps({"kind": "train", "step": step, "loss": 2.5}).encode() + b"\n"


DAMAGE = [b'{"kind": "trai\n', b"7\n", b"[1]\n", b'{"kind": "train"}\n', b'{"step": "\xff\xfe"}\n', b"\n"]


@pytest.mark.parametrize("bad", DAMAGE)
def test_a_damaged_line_costs_itself_and_is_said(bad: bytes, tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    write(path, [record(1), bad, record(3), record(4), record(5)])
    assert [r["step"] for r in read_metrics(path)] == [1, 3, 4, 5]
    MetricsLog(path, 4, said.append).close()
    assert path.read_bytes() == record(1) + record(3) + record(4)
    (sentence,) = said
    assert f"{path}: line 2 can't be read" in sentence


def test_a_line_that_a_kill_cut_short_is_nothing_to_speak_of(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    write(path, [record(1), record(2), record(3)[:-9]])
    MetricsLog(path, 2, said.append).close()
    assert path.read_bytes() == record(1) + record(2)
    assert not said


def test_what_json_does_not_have_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    given = {"step": 1, "loss": math.nan, "norms": {"matrix": math.inf}, "layers": [1.0, -math.inf], "lr": 0.1}
    log.write(given)
    log.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {"step": 1, "loss": None, "norms": {"matrix": None}, "layers": [1.0, None], "lr": 0.1}
    assert math.isnan(given["loss"])  # others are told what it was
