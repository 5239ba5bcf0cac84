"""`slm report`: several runs on one page, and what the page of one run shows beside the plain curves."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from slm.cli.main import app
from slm.config.errors import ConfigError, RunError
from slm.report.compare import write_comparison
from slm.report.run import skipped_at, source_chart, tokens_at, write_run_report
from slm.report.thin import buckets, thinned


def record(step: int, **more) -> dict[str, Any]:
    return {
        "kind": "train", "step": step, "tokens": 256 * step, "tokens_per_param": step / 100, "loss": 8 / step, "bpb": 4 / step, "lr": 1e-3,
        "grad_norm": 1.5, "tokens_per_s": 512.0, "mfu_causal": None, "mfu_palm": None, "skipped": int(step >= 3), "seconds": 36.0 * step,
    } | more  # fmt: skip


def evaluated(step: int) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "heldout_bpb": 1.5, "heldout_bpb_by_source": {"<web>": 1.25, "code": 1.75}}


@pytest.fixture
def run(tiny):
    def make(name: str, records: list[dict], **changes) -> Path:
        place = Path("runs") / name
        place.mkdir(parents=True)
        config = tiny(**changes).model_dump(mode="json") | {"name": name}
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        (place / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return place

    return make


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.inputs: list[dict] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag == "input":
            self.inputs.append(dict(attributes))
        if tag not in ("meta", "input", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(text)


def test_two_runs_on_one_page(run) -> None:
    first = run("a", [*(record(s) for s in range(1, 6)), evaluated(4)])
    other = run("</script><b>", [record(s, loss=float("nan")) for s in range(1, 4)], train__optim={"name": "adamw", "lr": 1e-3})  # fmt: skip
    page = Page(write_comparison([first, other], Path("page.html"), lambda config: 100.0, "hours").read_text())
    assert [(i["value"], "checked" in i) for i in page.inputs if i["name"] == "axis"] == [
        ("tokens", False), ("steps", False), ("flops", False), ("hours", True),
    ]  # fmt: skip
    data = json.loads(page.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    one, two = data["runs"]
    assert two["name"] == "</script><b>"
    assert one["train"]["x"] == {
        "tokens": [256, 512, 768, 1024, 1280],
        "steps": [1, 2, 3, 4, 5],
        "flops": [25600, 51200, 76800, 102400, 128000],
        "hours": [0.01, 0.02, 0.03, 0.04, 0.05],
    }
    assert one["eval"] == {
        "x": {"tokens": [1024], "steps": [4], "flops": [102400], "hours": [0.04]},
        "y": {"heldout": [1.5], "heldout <web>": [1.25], "heldout code": [1.75]},
    }
    assert one["skipped"]["steps"] == [3]
    assert "loss" not in two["train"]["y"]
    assert two["train"]["y"]["bpb"] == [4, 2, 1.33333]
    keys = [c["key"] for c in data["charts"]]
    assert keys == ["loss", "heldout", "heldout <web>", "heldout code", "bpb", "lr", "grad_norm", "tokens_per_s"]
    text = Path("page.html").read_text()
    assert "train.optim.lr: 0.003 -&gt; 0.001" in text
    assert not re.search(r'(?:src|href)\s*=\s*["\'](?!#)|https?://(?!www\.w3\.org)|@import|fetch\(', text)


def test_axes_that_not_all_runs_know_are_left_out(run) -> None:
    first, other = run("a", [record(1)]), run("b", [{k: v for k, v in record(1).items() if k != "seconds"}])
    text = write_comparison([first, other], Path("page.html"), lambda config: None).read_text()
    assert [i["value"] for i in Page(text).inputs if i["name"] == "axis"] == ["tokens", "steps"]
    with pytest.raises(RunError, match=r"hours of training; the axes that they share: tokens, steps"):
        write_comparison([first, other], Path("page.html"), lambda config: None, "hours")
    with pytest.raises(ConfigError, match="no x axis 'epochs'"):
        write_comparison([first], Path("page.html"), lambda config: None, "epochs")


def test_the_same_run_twice_is_told_apart_and_no_difference_is_said(run) -> None:
    first, other = run("a", [record(1)]), run("b", [record(1)])
    (other / "config.yaml").write_text((first / "config.yaml").read_text())
    text = write_comparison([first, other], Path("page.html"), lambda config: None).read_text()
    assert "runs/b against runs/a" in text
    assert "The same experiment." in text


def test_the_command(run) -> None:
    run("a", [record(s) for s in (1, 2)])
    run("b", [record(1)])

    def call(*arguments: str) -> dict:
        return json.loads(CliRunner().invoke(app, ["report", *arguments, "--json"], catch_exceptions=False).stdout)

    assert call("a") == {"page": "runs/a/report.html", "runs": ["runs/a"]}
    assert "it stands at step 2" in Path("runs/a/report.html").read_text()
    assert call("a", "runs/b")["page"] == "comparison.html"
    assert "flops" in Path("comparison.html").read_text()
    assert call("a", "b", "--out", "x.html", "--x", "steps")["page"] == "x.html"
    run("c", [])
    with pytest.raises(RunError, match="nothing to compare"):
        call("a", "c")


def test_an_axis_is_for_several_runs(run) -> None:
    run("a", [record(1)])
    with pytest.raises(ConfigError, match=r"--x=steps is for a comparison, and 'a' is one run"):
        CliRunner().invoke(app, ["report", "a", "--x", "steps"], catch_exceptions=False)
    assert not Path("runs/a/report.html").exists()


def test_damage_in_a_comparison(run) -> None:
    first, other = run("a", [record(1)]), run("b", [record(1, loss=None)])
    with (first / "metrics.jsonl").open("a") as log:
        log.write("7\n")
    text = write_comparison([first, other], Path("page.html"), lambda config: None).read_text()
    assert "runs/a/metrics.jsonl: 1 damaged line passed over." in text
    with pytest.raises(ConfigError, match="runs/a is a directory"):
        write_comparison([first, other], first, lambda config: None)
    (other / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match=r"runs/b/config\.yaml is damaged"):
        write_comparison([first, other], Path("page.html"), lambda config: None)


def test_finals_on_different_held_out_text_are_said_to_be_no_comparison(run) -> None:
    places = {name: run(name, [record(1)]) for name in "abc"}
    unfinished = run("d", [record(1)])

    def page(**texts: dict | None) -> str:
        for name, heldout in texts.items():
            summary = {"steps": 1, "params": {"unique": 9}, "bpb": 1.5, "heldout": heldout}
            (places[name] / "summary.json").write_text(json.dumps(summary))
        return write_comparison([*places.values(), unfinished], Path("page.html"), lambda config: None).read_text()

    text, other = {"docs": 12, "bytes": 3400, "tokens": 900}, {"docs": 12, "bytes": 3500, "tokens": 900}
    differ = "scored on different held-out text"
    assert differ not in page(a=text, b=text | {"tokens": 500}, c=None)
    shown = page(a=text, b=other, c=text)
    assert differ in shown
    assert "(a, c: 12 documents of 3,400 bytes; b: 12 documents of 3,500 bytes). Score them" in shown
    assert differ not in page(a=text, b={"docs": "many"}, c=text)


def test_the_page_of_a_run_shows_sources_memory_and_skips(run) -> None:
    place = run("a", [*(record(s, memory_peak_bytes=s * 2**30, mfu_causal=0.5) for s in (1, 2, 3)), evaluated(2), evaluated(3)])  # fmt: skip
    text = write_run_report(place).read_text()
    Page(text)
    assert text.count("<svg") == 8
    for part in (
        "Held-out text by source",
        "&lt;web&gt;",
        "memory (GiB)",
        "model FLOPs utilisation",
        "Red ticks",
        "1 in all",
    ):
        assert part in text, part


def test_where_things_happened() -> None:
    train = [record(2), record(4, tokens=2048), record(6, tokens=4096, skipped=5)]
    assert tokens_at([1, 2, 3, 6, 12], train) == [256, 512, 1280, 4096, 8192]
    assert skipped_at(train) == [2048 / 1e6, 4096 / 1e6]
    assert source_chart(train, [{"step": 1, "heldout_bpb": 1.0}]) is None


@pytest.mark.parametrize("count", [0, 1, 2, 5, 999, 1000, 1001, 12_345])
def test_a_long_curve_is_made_short(count: int) -> None:
    parts = buckets(count, 100)
    assert [i for p in parts for i in range(count)[p]] == list(range(count))
    assert len(parts) <= 100
    x, y = thinned(list(range(count)), [2.0 * i for i in range(count)], 100)
    assert y == [2 * v for v in x]
    assert x[-1:] == list(range(count))[-1:]
