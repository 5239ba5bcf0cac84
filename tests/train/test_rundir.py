"""The run directory: what can't be used is said before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.config.errors import RunError
from slm.train.rundir import claimed, refuse_other_experiment


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_can_not_be_is_named(place: str, tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=rf"can't be kept in .*{place}: .*log\.dir"), claimed(tiny(), tmp_path / place):
        pass


def test_a_full_disk_is_named(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slm.train.rundir.replace_durably", full)
    with pytest.raises(RunError, match="No space left on device"), claimed(tiny(), tmp_path / "run"):
        pass


@pytest.mark.parametrize("text", [b"a: [", b"- a\n", b"", b"\xff\xfe\x00"])
def test_a_damaged_config_is_no_other_experiment(text: bytes, tiny, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(RunError, match=r"config.yaml is damaged.*checkpoints/step-\.\.\./config\.yaml"):
        refuse_other_experiment(tiny(), tmp_path)
