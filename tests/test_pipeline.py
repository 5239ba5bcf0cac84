from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from support import tiny_config

from slm.checkpoint import restore
from slm.config.errors import RunError
from slm.data.prepare import prepare
from slm.eval.bpb import evaluate
from slm.pipeline import launch


def test_from_nothing_to_a_report_and_not_twice(tiny) -> None:
    run = tiny(finish={"samples": 2})
    summary = launch(run)
    folder = Path("runs/tiny")
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["identity"] == run.identity
    assert set(summary["baselines"]) == {"gzip -9", "xz -9"}
    assert len(summary["samples"]) == 2
    assert summary["export"][0]["verified"]
    assert (folder / "hf" / "config.json").exists()
    assert (folder / "report.html").exists()
    assert (folder / "config.yaml").exists()
    before = (folder / "summary.json").stat().st_mtime_ns
    assert launch(run)["bpb"] == summary["bpb"]
    assert (folder / "summary.json").stat().st_mtime_ns == before


def test_what_a_finished_run_was_not_asked_for_is_made_when_it_is(tiny) -> None:
    bare, shown = {"samples": 0, "export": [], "baselines": False, "report": False}, io.StringIO()
    first = launch(tiny(finish=bare))
    assert (first["export"], first["samples"], first["baselines"], first["report"]) == ([], [], {}, None)
    console = Console(file=shown, width=250)
    second = launch(tiny(finish=bare | {"export": ["hf"]}), console=console)
    assert (
        "runs/tiny is trained already (step 12), but not with an export to hf: it is finished anew." in shown.getvalue()
    )
    assert second["export"][0]["verified"]
    assert (second["bpb"], second["steps"], second["samples"]) == (first["bpb"], 12, [])
    third = launch(tiny(finish=bare | {"samples": 2, "baselines": True, "report": True}), console=console)
    assert "but not with 2 samples, baselines, report" in shown.getvalue()
    assert third["export"][0]["verified"], "what was made before stays"
    assert (len(third["samples"]), set(third["baselines"])) == (2, {"gzip -9", "xz -9"})
    assert Path(third["report"]).is_file()
    before = Path("runs/tiny/summary.json").stat().st_mtime_ns
    assert launch(tiny(finish=bare), console=console)["bpb"] == first["bpb"]
    assert Path("runs/tiny/summary.json").stat().st_mtime_ns == before, "less was asked for: nothing to do"


def test_a_mixture_of_sources_on_rows_shorter_than_the_model_s_context_is_finished_whole(tiny) -> None:
    """The final figure is of windows as long as the rows: positions beyond were never trained."""
    sources = {n: {"source": {"name": "synthetic", "count": 48, "length": 120, "seed": i}} for i, n in enumerate("ab")}
    data = {"sources": sources, "mixture": [{"weights": {"a": 0.5, "b": 0.5}}], "seq_len": 32, "heldout": 0.1}
    run = tiny(data=data, model__context=256, model__position={"name": "rope"}, finish={"samples": 1})
    shown = io.StringIO()
    summary = launch(run, console=Console(file=shown, width=400))
    assert (
        "Warning: model.context is 256, but rows have 32 tokens: positions beyond are never trained" in shown.getvalue()
    )
    assert summary["export"][0]["verified"]
    assert Path(summary["report"]).is_file()
    card = Path("runs/tiny/hf/README.md").read_text()
    assert "| text | a, b |" in card
    assert "| context | 256 tokens |" in card
    assert "| trained on | rows of 32 tokens |" in card
    corpus, restored = prepare(run.data, run.tokenizer, run.impl.data_dir), restore("runs/tiny")
    assert restored.context == 32
    bpb = {
        n: evaluate(restored.model, corpus.documents("heldout"), corpus.tokenizer.eot_id, context=n).bpb
        for n in (32, 256)
    }
    assert summary["bpb"] == bpb[32] != bpb[256]


def test_a_run_whose_hours_are_used_up_can_be_finished_anew(tiny) -> None:
    bare = {"samples": 0, "export": [], "baselines": False, "report": False}
    run = tiny(train__budget={"hours": 1e-5, "tokens_per_s": 1e9}, train__schedule={"name": "constant"}, finish=bare)
    first = launch(run)
    second = launch(run.with_(finish=run.finish.with_(report=True)))
    assert (second["interrupted"], second["steps"], second["bpb"]) == (False, first["steps"], first["bpb"])
    assert Path(second["report"]).is_file()


@pytest.mark.parametrize("damage", [b'{"name": "ti', b"[]", b"\xff"])
def test_a_damaged_summary_is_made_again(damage: bytes, tiny) -> None:
    run = tiny(finish={"samples": 0, "export": [], "baselines": False})
    summary, file = launch(run), Path("runs/tiny/summary.json")
    file.write_bytes(damage)
    assert launch(run)["bpb"] == summary["bpb"]
    assert json.loads(file.read_text())["bpb"] == summary["bpb"]


def test_a_report_that_could_not_be_written_is_made_the_next_time(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(name="t[/x]", finish={"samples": 0, "export": [], "baselines": False})
    report, shown = Path("runs/t[/x]/report.html"), io.StringIO()

    def full(*_: object) -> None:
        raise RunError("Can't write report.html: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr("slm.pipeline.write_run_report", full)
        with pytest.raises(RunError, match=r"No space left on device\. All else of the run is there.*slm report"):
            launch(run, console=Console(file=io.StringIO()))
        launch(run, console=Console(file=shown, width=200))  # it is trained, whatever becomes of the page
    assert not report.exists()
    assert "No space left on device" in shown.getvalue()
    launch(run, console=Console(file=shown, width=200))
    assert report.is_file()
    assert f"nothing to do. Its report: {report}" in shown.getvalue()


def test_a_model_that_cannot_be_exported_still_gets_its_report(tiny) -> None:
    summary = launch(tiny(model__residual="parallel"))
    assert not summary["export"][0]["verified"]
    assert "model.residual" in summary["export"][0]["error"]
    assert "not exported" in Path("runs/tiny/report.html").read_text()


def test_finishing_is_taken_up_again_after_an_interruption(tiny, monkeypatch) -> None:
    from slm import pipeline

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_samples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch(tiny())
    assert not Path("runs/tiny/summary.json").exists()
    assert launch(tiny())["steps"] == 12


def test_without_heldout_documents_there_is_no_figure(tiny) -> None:
    summary = launch(tiny(data__heldout=0, finish={"export": [], "samples": 0}))
    assert summary["bpb"] is None
    assert "xz" not in Path("runs/tiny/report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 1.5, 3.0, 4.5])
def test_ctrl_c_at_any_moment_leaves_something_that_the_same_command_completes(delay: float) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config(train__budget={"steps": 300})))
    command = [sys.executable, "-m", "slm", "train", "tiny.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 75, 130, -signal.SIGINT), out  # -SIGINT: before Python had started
    if process.returncode in (0, 75, 130):
        assert "Traceback" not in out
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("runs/tiny/report.html").exists()
    assert not list(Path(".").rglob("*.partial"))


def test_everything_but_its_own_use_works_without_optional_packages() -> None:
    """triton, flash-attn, wandb and transformers are asked for only where they are used."""
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config()))
    code = (
        "import sys\n"
        "for name in ('triton', 'flash_attn', 'wandb', 'transformers'): sys.modules[name] = None\n"
        "sys.argv = ['slm', 'train', 'tiny.yaml', '--json']\n"
        "from slm.cli.main import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["bpb"] > 0
    assert "pip install 'slm[hf]'" in summary["export"][0]["error"]
