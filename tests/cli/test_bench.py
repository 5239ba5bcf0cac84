"""`slm bench data`: one JSON object for scripts, a table for people, a page for the docs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slm.bench import packing
from slm.cli.main import app

FIELDS = {"name", "value", "unit", "peer", "peer_value", "ratio", "target", "met", "wall", "note"}


def test_json_table_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "version", lambda name: None)
    page = tmp_path / "page.md"
    asked = ["bench", "data", "--only", "pack", "--mb", "1", "--repeats", "1", "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, [*asked, "--json", "--markdown", str(page)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "settings", "results"}
    assert {"cpu", "cores", "python", "versions", "date", "load"} <= set(report["machine"])
    assert {"slm", "numpy", "datatrove", "grain", "tiktoken", "gigatoken"} <= set(report["machine"]["versions"])
    assert [set(one) for one in report["results"]] == [FIELDS] * 3
    assert "slm bench data --only pack --mb 1 --repeats 1 --markdown page.md" in page.read_text()
    plain = CliRunner().invoke(app, asked)
    assert plain.exit_code == 0
    assert "pack, plan build" in plain.stdout
    assert "Grain (not installed)" in plain.stdout
