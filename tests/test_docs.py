"""Pages that promise to run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


@pytest.mark.slow
def test_add_a_part_runs_from_top_to_bottom(tmp_path: Path) -> None:
    for code in blocks("add-a-part.md", "python"):
        file = tmp_path / code.split("\n")[0].removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    commands = [
        line[2:] for block in blocks("add-a-part.md", "console") for line in block.splitlines() if line.startswith("$ ")
    ]
    assert len(commands) == 4
    outputs = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        outputs.append(done.stdout)
    assert "learned slope per channel" in outputs[0]
    assert (tmp_path / "runs/mixed/summary.json").is_file()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_lab/test_parts.py"]
    done = subprocess.run(tests, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout


def test_a_refusal_of_the_page_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks("add-a-part.md", "python")[0]
    (tmp_path / "parts_of_the_page.py").write_text(code.replace('"parity"', '"parity2"').replace('"prelu"', '"prelu2"'))
    command = "import parts_of_the_page; from slm.model.config import Model; Model(dim=32, layers=1, residual='parallel', attention='parity2', position='none')"
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert "needs a feed-forward behind it" in done.stderr
