"""The first pass on datatrove's executors gives the bytes that it gives without them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from slm.config.errors import ConfigError
from slm.data.ingest.build import build
from slm.data.ingest.choose import engine_of
from slm.data.ingest.config import Curation
from slm.data.ingest.engine import NotYet, run_units
from slm.data.sources import Local
from slm.data.tokenizer import BytePairs


@pytest.fixture
def source(tmp_path: Path) -> Local:
    for number in range(5):
        (tmp_path / "in").mkdir(exist_ok=True)
        lines = [f'{{"id": "{number}-{i}", "text": "{"some words of text " * (i + 1)}{number}"}}\n' for i in range(30)]
        (tmp_path / "in" / f"{number}.jsonl").write_text("".join(lines))
    return Local(paths=(str(tmp_path / "in"),))


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


@pytest.mark.slow
def test_datatrove_on_this_machine(source: Local, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    part, curation = BytePairs(vocab=270), Curation(heldout=0.1)
    plain = build(tmp_path / "plain", (source,), part, curation)
    engine = partial(run_units, "datatrove", tasks=3, workers=2)
    other = build(tmp_path / "other", (source,), part, curation, engine=engine)
    assert contents(plain.path) == contents(other.path)


def test_slurm_jobs_are_handed_in_once_and_waited_for(
    source: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an sbatch that notes its script and never runs it."""
    pytest.importorskip("datatrove")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "sbatch").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/submitted\necho Submitted batch job 4711\n')
    (bin_ / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    settings = {"time": "1:00:00", "partition": "cpu"}
    part, curation = BytePairs(vocab=270), Curation(heldout=0.1)
    engine = partial(run_units, "datatrove-slurm", tasks=3, workers=1, settings=settings)
    handed_in = []
    for _ in range(2):
        with pytest.raises(NotYet, match=r"5 of 5 units .* Run the same command again"):
            build(tmp_path / "store", (source,), part, curation, engine=engine)
        handed_in.append((tmp_path / "submitted").read_text())
    assert handed_in[0] == handed_in[1]
    done = build(tmp_path / "store", (source,), part, curation)  # the jobs never ran: done here instead
    assert contents(done.path) == contents(build(tmp_path / "plain", (source,), part, curation).path)


def test_unknown_engines_and_settings_are_explained(source: Local, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'datatrove-slurm'"):
        engine_of("datatrove-slrm", 1, 1, {})
    pytest.importorskip("datatrove")
    engine = engine_of("datatrove", 2, 1, {"partitoin": "cpu"})
    with pytest.raises(ConfigError, match=r"doesn't take these settings.*partitoin"):
        build(tmp_path / "store", (source,), BytePairs(vocab=270), Curation(heldout=0.1), engine=engine)
