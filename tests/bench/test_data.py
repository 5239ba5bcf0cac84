"""Every benchmark runs and says what it measured; how fast things are is no business of tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slm.bench import data, loading, packing, tokenising
from slm.bench.clock import Timing
from slm.bench.jobs import run_job
from slm.bench.results import Result
from slm.config.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def run(work: Path, *only: str) -> dict[str, Result]:
    report, results = data.run(only, mb=1, repeats=1, work=work)
    assert report["settings"]["only"] == list(only)
    assert report["machine"]["cores"] >= 1
    return {one.name: one for one in results}


def test_loading_packing_and_resuming(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MOST", 200_000)
    monkeypatch.setattr(packing, "GRAIN_DOCUMENTS", 1000)
    found = run(work, "load", "pack", "resume")
    assert found["load, one thread"].value
    assert found["pack, fill of rows of 2048"].met
    assert found["pack, predictions lost"].met
    assert found["resume, state"].met
    grain = [one for name, one in found.items() if "beside Grain" in name]
    assert len(grain) == 4
    for one in grain:
        assert (one.ratio is None) == ("not installed" in str(one.peer))


def test_a_missing_peer_is_said_and_nothing_guessed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loading, packing):
        monkeypatch.setattr(module, "version", lambda name: None)
    found = run(work, "load", "pack")
    one = found["load, beside Grain concat, 0 threads"]
    assert (one.peer, one.peer_value, one.ratio, one.met) == ("Grain (not installed)", None, None, None)
    assert found["pack, fill of rows of 2048"].peer_value is None


@pytest.mark.slow
def test_tokenising_and_memory(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    found = run(work, "tokenise", "memory")
    for name, one in found.items():
        if one.value is None:
            assert "isn't installed" in one.note, name
    assert found["tokenise, hf, workers=1"].value
    assert 0 < (found["memory, load, 10 MB"].value or 0) < 1


def test_backends_that_disagree_are_no_result(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(tokenising, "version", lambda name: "1")
    monkeypatch.setattr(tokenising, "why_not", lambda tokenizer, name: "" if name == "hf" else "left out")
    monkeypatch.setattr(
        tokenising, "in_slices", lambda jobs: {name: vars(Timing(1.0, 1.0, 100 + i)) for i, name in enumerate(jobs)}
    )
    with pytest.raises(RunError, match="different numbers of tokens"):
        run(work, "tokenise")


def test_a_job_that_fails_says_why(work: Path) -> None:
    with pytest.raises(RunError, match=r"job tokenise .* failed: (.|\n)*nowhere"):
        run_job("tokenise", text="/nowhere", tokenizer="/nowhere", out=str(work / "o"), backend="hf", workers=1)


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark 'tokenize'.*tokenise"):
        data.run(("tokenize",))
    with pytest.raises(ConfigError, match="1 or more"):
        data.run((), repeats=0)
