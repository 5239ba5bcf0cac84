"""`slm bench kernels`: every op runs, and what is said of it is right."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from slm.bench.kernels import table
from slm.bench.kernels.cases import CASES, cases
from slm.bench.kernels.timing import Clock
from slm.config.errors import ConfigError
from slm.cost.device import bandwidth
from slm_kernels.dispatch import OPS


def test_every_op_is_measured_in_every_direction_and_is_right() -> None:
    report, rows = table.run(without=["compile"], device="cpu", quick=True)
    assert {r.op for r in rows} == set(CASES)
    assert set(CASES) <= set(OPS)
    for op in CASES:
        modes = {r.mode for r in rows if r.op == op and r.contestant == "ours"}
        assert modes == ({"fwd"} if op == "newton_schulz" else {"fwd", "bwd", "full"})
    for r in rows:
        assert r.ms > 0
        assert r.ms_p20 <= r.ms <= r.ms_p80
        assert r.error is not None
        assert r.error < 1e-5, r
        assert (r.fraction, r.memory) == (None, None)  # of a CPU neither is known
    assert report["device"] == "cpu"
    json.dumps(table.as_json(report, rows))


def test_an_op_that_is_wrong_shows_in_its_error() -> None:
    [case] = cases(["rms_norm"], tokens=8, size=4, quick=True)
    cpu = torch.device("cpu")
    calls = {"eager": case.plain, "compile": case.plain, "ours": lambda x, w: 1.1 * case.plain(x, w)}
    found = table._errors(case, calls, cpu, torch.float32)
    assert found["eager"] is not None
    assert found["eager"] < 1e-6
    assert found["compile"] is None
    assert found["ours"] == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ConfigError, match="no op 'rms_nrom'"):
        table.run(["rms_nrom"])
    with pytest.raises(ConfigError, match="no peer"):
        table.run(without=["triton"])
    with pytest.raises(ConfigError, match="no dtype"):
        table.run(dtype="fp8")


def test_the_floor_is_what_the_data_sheet_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bandwidth("NVIDIA H100 80GB HBM3") == 3.35e12
    assert bandwidth("NVIDIA H100 PCIe") == 2.0e12
    assert bandwidth("cpu") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    gpu = torch.device("cuda")
    norm = next(iter(cases(["rms_norm"], tokens=8192, size=2, quick=False)))
    assert norm.shape == "8192 x 576"
    assert table._floor(norm.forward, gpu, torch.bfloat16) == pytest.approx(2 * 8192 * 576 * 2 / 3.35e12)
    head = next(iter(cases(["linear_cross_entropy"], tokens=8192, size=2, quick=False)))
    assert table._floor(head.forward, gpu, torch.bfloat16) == pytest.approx(2 * 8192 * 576 * 49152 / 989.4e12)
    assert table._floor(norm.forward, torch.device("cpu"), torch.bfloat16) is None
    assert table._floor(norm.forward, gpu, torch.float32) is None  # the data sheet is read for 16 bits


def test_everybody_has_as_many_runs_in_turns() -> None:
    order: list[str] = []
    found = Clock(torch.device("cpu"), 0.0, least=3).in_turns({n: lambda n=n: order.append(n) for n in "ab"})
    assert order == ["a", "b"] * 5  # two to warm up
    assert set(found) == {"a", "b"}


def test_the_command(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slm.cli.main import app

    page = tmp_path / "kernels.md"
    given = ["bench", "kernels", "--only", "rms_norm", "--without", "compile", "--quick", "--device", "cpu"]
    done = CliRunner().invoke(app, [*given, "--json", "--markdown", str(page)])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [(r["contestant"], r["mode"]) for r in rows] == [
        (c, m) for m in ("fwd", "bwd", "full") for c in ("eager", "ours")
    ]
    assert "| rms_norm | 32 x 64 | ours | full |" in page.read_text()
    assert "slm bench kernels --only rms_norm --without compile --quick" in page.read_text()


@pytest.mark.slow
def test_compiled_code_takes_part() -> None:
    _, rows = table.run(["activation"], device="cpu", quick=True)
    assert {r.contestant for r in rows} == {"eager", "compile", "ours"}
    assert {r.mode for r in rows if r.contestant == "compile"} == {"fwd", "bwd", "full"}
