"""Arms that are scored on other text than the control are not compared with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tiny_config
from typer.testing import CliRunner

from slm.cli.main import app
from slm.study.heldout import unlike
from slm.study.plan import Planned, Study, plan_study, read_study
from slm.study.report import report, write_report

TEXT = {"docs": 9, "bytes": 2000, "tokens": 2000}
SOURCES = {name: {"source": {"name": "synthetic", "count": 48, "seed": i}} for i, name in enumerate("abc")}
MIXED = {
    "sources": {name: SOURCES[name] for name in "ab"},
    "mixture": [{"weights": {"a": 0.5, "b": 0.5}}],
    "seq_len": 32,
}


def planned(arms: dict[str, list[str]], data: dict[str, Any] | None = None) -> tuple[Study, list[Planned]]:
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config(data=data) if data else tiny_config()))
    study = {"name": "toy", "recipe": "tiny.yaml", "control": "base", "arms": {"base": [], **arms}, "seeds": [0, 1]}
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return (read := read_study("study.yaml")), plan_study(read)


def finish(runs: list[Planned], **texts: dict[str, int] | None) -> None:
    """Summaries as runs leave them; ``texts``: what an arm was scored on, if it isn't `TEXT`."""
    for i, p in enumerate(runs):
        p.dir.mkdir(parents=True, exist_ok=True)
        bpb = 2.0 - (1.0 if p.arm == "junk" else 0.0) + 0.001 * i
        summary = {"identity": p.run.identity, "bpb": bpb, "heldout": texts.get(p.arm, TEXT)}
        (p.dir / "summary.json").write_text(json.dumps(summary))
        (p.dir / "metrics.jsonl").write_text(json.dumps({"kind": "eval", "step": 5, "heldout_bpb": bpb}) + "\n")


def sources(*names: str) -> list[str]:
    share = 1 / len(names)
    weights = ", ".join(f"{name}: {share}" for name in names)
    members = ", ".join(f"{n}: {{source: {{name: synthetic, count: 48, seed: {'abc'.index(n)}}}}}" for n in names)
    return [f"data.sources={{{members}}}", f"data.mixture=[{{weights: {{{weights}}}}}]"]


DIFFERENT = {
    "source": ["data.source.seed=7"],
    "share": ["data.heldout=0.2"],
    "filters": ["data.filters=['size >= 3']"],
    "dedup": ["data.dedup=normalized"],
}
SAME = {
    "model": ["model/position=none"],
    "order": ["data.shuffle=false"],
    "rows": ["data.packing=concat"],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_text_is_known_from_the_configs(name: str) -> None:
    study, runs = planned({"same": SAME["model"], "junk": DIFFERENT[name]})
    [(arm, sentence)] = unlike(study, runs).items()
    field = DIFFERENT[name][0].split("=")[0].removesuffix(".seed")
    assert arm == "junk"
    assert sentence.startswith(
        f"junk and base are not comparable: their held-out text is chosen differently ({field}); score"
    )
    assert "slm eval RUN --store STORE" in sentence


@pytest.mark.parametrize("name", SAME)
def test_what_chooses_no_documents_is_compared(name: str) -> None:
    study, runs = planned({"arm": SAME[name]})
    assert unlike(study, runs) == {}
    finish(runs)
    assert report(study, runs)["arms"][1]["delta"] == pytest.approx(0.001)


def test_weights_alone_and_other_names_are_compared_and_another_source_is_not() -> None:
    weights = "data.mixture=[{weights: {a: 0.9, b: 0.1}}]"
    swapped = [
        "data.sources={y: {source: {name: synthetic, count: 48, seed: 1}}, x: {source: {name: synthetic, count: 48, seed: 0}}}",
        "data.mixture=[{weights: {x: 0.7, y: 0.3}}]",
    ]
    study, runs = planned({"weights": [weights], "names": swapped, "junk": sources("a", "c")}, MIXED)
    assert list(unlike(study, runs)) == ["junk"]
    finish(runs)  # as much text, by chance
    assert [a["verdict"] == "not comparable" for a in report(study, runs)["arms"]] == [False, False, False, True]


def test_nothing_is_claimed_of_an_arm_on_other_text() -> None:
    study, runs = planned({"junk": DIFFERENT["source"], "same": SAME["model"]})
    finish(runs, junk={"docs": 5, "bytes": 1234, "tokens": 1})
    result, page = write_report(study, runs)
    base, junk, same = result["arms"]
    assert (base["verdict"], same["verdict"]) == ("control", "equivalent")
    assert {k: junk[k] for k in ("name", "n", "delta", "ci", "p_adjusted", "verdict")} == {
        "name": "junk", "n": 2, "delta": None, "ci": None, "p_adjusted": None, "verdict": "not comparable",
    }  # fmt: skip
    assert junk["loss"] == pytest.approx(1.0025)
    assert "differs, 5 documents of 1,234 bytes against 9 documents of 2,000 bytes;" in junk["sentence"]
    assert result["noise"]["df"] == 1  # of the arm that is compared
    assert [r["heldout"]["docs"] for r in result["runs"]] == [9, 5, 9, 9, 5, 9]
    html = page.read_text()
    assert "junk and base are not comparable" in html
    assert "junk (other text)" in html
    assert ">not comparable</td>" in html
    assert "nan" not in html
    assert json.loads((page.parent / "report.json").read_text()) == result


def test_a_study_without_any_comparison_blames_no_seeds() -> None:
    study, runs = planned({"junk": DIFFERENT["share"]})
    finish(runs, junk={"docs": 5, "bytes": 1234, "tokens": 1})
    result, page = write_report(study, runs)
    assert result["noise"] == {"sd_paired": None, "df": 0, "minimal_detectable": None}
    html = page.read_text()
    assert "One seed only" not in html
    assert "No arm can be compared with the control" in html


def test_measured_text_overrules_filters_that_hold_out_the_same() -> None:
    study, runs = planned({"arm": DIFFERENT["dedup"]})
    finish(runs[:2])  # one seed of both; the other is as good as known
    assert unlike(study, runs) == {}
    finish(runs[:1], base=None)
    assert list(unlike(study, runs)) == ["arm"]


def test_text_that_changed_under_the_same_config_is_noticed() -> None:
    study, runs = planned({"arm": SAME["model"]})
    finish(runs)
    finish(runs[3:], arm=TEXT | {"bytes": 2001})
    assert list(unlike(study, runs)) == ["arm"]
    finish(runs[3:], arm=TEXT | {"tokens": 700})  # another tokenizer
    assert unlike(study, runs) == {}


def test_stores_are_judged_by_what_was_measured() -> None:
    study, runs = planned({"arm": ["data.store=two"]}, {"store": "one", "seq_len": 32})
    assert unlike(study, runs) == {}
    finish(runs)
    assert unlike(study, runs) == {}
    finish(runs, arm=TEXT | {"docs": 10})
    assert list(unlike(study, runs)) == ["arm"]


def test_the_command_line_warns_before_and_shows_it_after() -> None:
    def call(*arguments: str) -> str:
        return CliRunner().invoke(app, ["study", *arguments], catch_exceptions=False).stdout

    _, runs = planned({"junk": DIFFERENT["source"], "same": SAME["model"]})
    assert "Warning: junk and base are not comparable: their held-out text" in call("plan", "study.yaml")
    assert list(json.loads(call("plan", "study.yaml", "--json"))["not_comparable"]) == ["junk"]
    finish(runs)
    shown = call("report", "study.yaml")
    row = next(line for line in shown.splitlines() if line.split()[:2] == ["junk", "2"])
    assert row.split() == ["junk", "2", "1.0025", "not", "comparable"]
    assert "junk wins" not in shown
    assert "junk and base are not comparable: their held-out text is chosen differently (data.source)" in shown


def test_without_other_text_there_is_no_warning() -> None:
    planned({"same": SAME["model"]})
    assert "Warning" not in CliRunner().invoke(app, ["study", "plan", "study.yaml"], catch_exceptions=False).stdout
