from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest
import yaml

from slm.config.errors import ConfigError, RunError
from slm.report.charts import Chart, Line, draw
from slm.report.page import count, si, span, unit
from slm.report.run import write_run_report

TRAIN = {"kind": "train", "tokens": 100, "tokens_per_param": 0.1, "loss": 3.0, "bpb": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1e4, "mfu_causal": None, "mfu_palm": None, "skipped": 0, "seconds": 1.0}  # fmt: skip
SUMMARY = {
    "params": {"unique": 3_148_224}, "tokens": 1_700_000, "tokens_per_param": 0.54, "steps": 2, "flops": 1e12, "skipped": 0,
    "bpb": 1.4, "baselines": {"gzip -9": 1.9, "xz -9": 1.7}, "heldout": {"docs": 26, "bytes": 429_055, "tokens": 1},
    "samples": [{"prompt": "<script>alert(1)</script>", "continuation": "a < b & c"}], "sampling": {"temperature": 0.7, "top_p": 0.95},
    "export": [{"target": "hf", "class": "LlamaForCausalLM", "path": "p", "verified": True, "max_abs_diff": 5e-6, "top1_agreement": 1.0},
               {"target": "gguf", "class": None, "path": None, "verified": False, "error": "no <class>"}],
    "times": {"prepare": 4.0, "train": 150.0, "finish": 10.0}, "command": "slm train quickstart", "identity": "abc", "finished": "today",
    "machine": {"device": "cpu", "cores": 2, "python": "3.11", "torch": "2.13", "slm": "0.1", "peak_memory_bytes": 1e9},
}  # fmt: skip


@pytest.fixture
def run_dir(tiny, tmp_path: Path) -> Path:
    records = [TRAIN | {"step": s, "tokens": 100 * s, "bpb": 3.0 / s} for s in (1, 2)] + [
        {"kind": "eval", "step": 2, "heldout_bpb": 1.6}
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"half')
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny().model_dump(mode="json")))
    return tmp_path


def test_a_finished_run_is_whole_and_self_contained(run_dir: Path) -> None:
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY))
    page = write_run_report(run_dir).read_text()
    assert page.count("<svg") == 5
    assert not re.search(r'(?:src|href)="(?!#)', page.replace("xlink:href", ""))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for text in (
        "3.15M",
        "1.400",
        "1.900",
        "1.700",
        "2 min 30 s",
        "LlamaForCausalLM",
        "5.0e-06",
        "no &lt;class&gt;",
        "bits per byte",
    ):
        assert text in page, text
    assert "not finished" not in page


def test_an_unfinished_run_says_so_and_claims_nothing(run_dir: Path) -> None:
    page = write_run_report(run_dir).read_text()
    assert "This run is not finished: it stands at step 2" in page
    assert "What it cost" not in page
    assert "xz" not in page


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory"):
        write_run_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(RunError, match="no training records"):
        write_run_report(tmp_path)


@pytest.mark.parametrize("file", ["config.yaml", "summary.json"])
def test_a_damaged_file_is_an_error_that_names_it(run_dir: Path, file: str) -> None:
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY))
    whole = (run_dir / file).read_text()
    (run_dir / file).write_text(whole[:9] + "[")
    with pytest.raises(RunError, match=rf"{file} is damaged"):
        write_run_report(run_dir)
    assert not (run_dir / "report.html").exists()


def test_what_the_page_lacks_is_said(run_dir: Path) -> None:
    (run_dir / "summary.json").write_text(json.dumps({k: v for k, v in SUMMARY.items() if k != "machine"}))
    with pytest.raises(RunError, match=r"summary\.json lacks something that the page shows: .*machine"):
        write_run_report(run_dir)
    (run_dir / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"has no config\.yaml.*checkpoints"):
        write_run_report(run_dir)


def test_damaged_lines_and_a_loss_that_is_unknown_leave_a_page(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("wb") as log:
        log.write(b'\xff\n{"kind": "train"}\n')
        log.write(json.dumps(TRAIN | {"step": 1, "loss": None, "bpb": None}).encode() + b"\n")
    page = write_run_report(run_dir).read_text()
    assert "metrics.jsonl: 2 damaged lines passed over." in page
    assert "it stands at step 1" in page
    assert "nats per token</span>" not in page


def test_a_page_that_can_not_be_there_is_refused_before_it_is_drawn(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"is a directory, and a page is one file: name a file, such as .*report\.html"
    ):
        write_run_report(run_dir, tmp_path)
    with pytest.raises(ConfigError, match=r"There is no directory /nonexist for x\.html"):
        write_run_report(run_dir, Path("/nonexist/x.html"))
    with pytest.raises(ConfigError, match="There is no directory"):
        write_run_report(run_dir, run_dir / "config.yaml" / "x.html")


def test_a_disk_that_refuses_the_page_is_said(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, raw: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("slm.report.page.replace_durably", refuse)
    with pytest.raises(RunError, match=r"Can't write .*report\.html: Read-only file system\. "):
        write_run_report(run_dir)


def test_charts_are_repeatable_and_follow_the_pages_colour() -> None:
    chart = Chart(
        "tokens", "loss", [Line("a", [1, 2], [3, 4], [2, 3], [4, 5]), Line("b", [1, 2], [4, 3])], {"gzip": 3.5}
    )
    svg = draw(chart)
    assert svg == draw(chart)
    assert "currentColor" in svg
    assert "#123456" not in svg
    assert not re.match(r"<svg[^>]*(?<!-)\bwidth=", svg)


def test_numbers_as_people_read_them() -> None:
    assert [si(x) for x in (3_148_224, 429_055, 0.5, None, 2.5e13)] == ["3.15M", "429k", "0.5", "n/a", "25T"]
    assert si(999_999) == "1M"
    assert [unit(x, "B") for x in (824_344_576, 12, None)] == ["824 MB", "12 B", "n/a"]
    assert [count(x) for x in (2_048, 524_288)] == ["2,048", "524k"]
    assert [span(x) for x in (4.0, 150, 7200, None)] == ["4.0 s", "2 min 30 s", "2.0 h", "n/a"]
