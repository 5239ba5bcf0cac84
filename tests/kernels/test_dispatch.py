from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_checks import CAN_TRITON, DEVICE, GPU, module, needs_triton
from torch.utils.flop_counter import FlopCounterMode

import slm_kernels
from slm_kernels import Unsupported, chosen, rms_norm, set_default, supported, use
from slm_kernels.dispatch import OPS, Op
from slm_kernels.tuning import Config

ROOT = Path(__file__).resolve().parent.parent.parent


def run(code: str, **environment: str) -> str:
    """In a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), env.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import slm_kernels as s
x, w = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
q = torch.randn(1, 6, 2, 4, requires_grad=True)
t = torch.ones(1, 6, 2)
y = torch.randint(20, (6,))
outs = [
    s.linear_cross_entropy(x, w, y)[0], s.rms_norm(x, w[0]), s.qk_norm_rope(q, q, t, t)[0], s.swiglu(x, x),
    s.activation_linear(x, w, x), s.embedding(y, w), s.linear_kl(x, w, x.detach(), w.detach()),
    s.short_conv(x[None], w[:8, :4]), s.attention(*[q.transpose(1, 2)] * 3),
]
sum(o.sum() for o in outs).backward()
s.newton_schulz(torch.randn(2, 4, 5)); s.linear_lse(x, w, y); s.cross_entropy_(torch.randn(6, 20), y)
for name in s.dispatch.OPS:
    assert s.chosen()[name][0].impl == "torch", name
    assert "triton can't be imported" in s.chosen()[name][0].reason
try:
    s.rms_norm(x, impl="triton")
except s.Unsupported as error:
    print(error)
"""


def test_everything_works_where_triton_is_not_installed() -> None:
    assert "rms_norm: impl=triton can't do this: triton can't be imported" in run(WITHOUT_TRITON)


@pytest.mark.skipif(not CAN_TRITON or GPU, reason="needs Triton and no GPU")
def test_without_the_interpreter_cpu_tensors_are_torchs() -> None:
    code = (
        "import torch, slm_kernels as s; print(s.supported('rms_norm', torch.ones(2, 4), None, 1e-5, 0.0, None, None))"
    )
    assert run(code).strip() == "(False, 'tensors are on cpu')"


def test_ops_are_listed_and_exported() -> None:
    assert {
        "linear_cross_entropy",
        "cross_entropy_",
        "rms_norm",
        "qk_norm_rope",
        "activation",
        "activation_linear",
    } < set(OPS)
    assert all(hasattr(slm_kernels, name) for name in slm_kernels.__all__)


def test_auto_on_a_cpu_is_torch_and_says_why(caplog) -> None:
    if GPU:
        pytest.skip("needs a machine without GPU")
    module("dispatch")._noted.clear()
    with caplog.at_level(logging.INFO, "slm_kernels"):
        rms_norm(torch.ones(2, 4))
        rms_norm(torch.ones(3, 4))
    [choice] = chosen()["rms_norm"]
    assert choice.impl == "torch"
    assert choice.reason
    assert [r.message for r in caplog.records] == [f"rms_norm: torch ({choice.reason})"]  # once


def test_defaults_are_put_back() -> None:
    with pytest.raises(ValueError, match="weight must be"), use("torch"):  # noqa: PT012
        assert module("dispatch")._default["impl"] == "torch"
        rms_norm(torch.ones(2, 4), torch.ones(3))
    assert module("dispatch")._default["impl"] == "auto"
    with pytest.raises(ValueError, match="not one of"):
        set_default("cuda")


@needs_triton
def test_use_reaches_calls_that_do_not_say(monkeypatch) -> None:
    module("dispatch")._noted.clear()
    with use("triton"):
        rms_norm(torch.ones(2, 4, device=DEVICE))
        rms_norm(torch.ones(2, 4, device=DEVICE), impl="torch")
    assert [c.impl for c in chosen()["rms_norm"]] == ["torch", "triton"]
    with pytest.raises(Unsupported, match="fp64"), use("triton"):
        rms_norm(torch.ones(2, 4, device=DEVICE).double())


@needs_triton
def test_tensors_on_two_devices_are_refused() -> None:
    ok, why = supported(
        "rms_norm", torch.ones(2, 4, device=DEVICE), torch.ones(4, device="meta"), 1e-5, 0.0, None, None
    )
    assert not ok
    assert "different devices" in why


def test_compile_runs_the_torch_implementation_compiled(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, fullgraph: lambda *a: calls.append(f) or f(*a))
    op = OPS["rms_norm"]
    monkeypatch.setattr(op, "compiled", None)
    x = torch.randn(2, 4)
    torch.testing.assert_close(rms_norm(x, impl="compile"), rms_norm(x, impl="torch"))
    assert calls == [op.torch]


def test_nothing_is_compiled_while_operations_are_watched_and_that_is_said(monkeypatch) -> None:
    module("dispatch")._noted.clear()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    monkeypatch.setattr(OPS["rms_norm"], "compiled", None)
    with FlopCounterMode(display=False):
        rms_norm(torch.randn(2, 4), impl="compile")
    [choice] = chosen()["rms_norm"]
    assert choice.impl == "torch"
    assert "watches" in choice.reason


@needs_triton
def test_auto_leaves_to_torch_what_would_be_slow_or_what_inductor_fuses(monkeypatch) -> None:
    monkeypatch.setattr(module("dispatch"), "INTERPRETED", False)
    monkeypatch.setattr(module("dispatch"), "unable", lambda *a: "")
    op = Op("for a test", torch=lambda: 0, triton=lambda: 1, why_not=lambda: "", fused_by_inductor=True)
    try:
        assert op("auto") == 1
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert op("auto") == 0
        assert op("triton") == 1
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
        op.why_slow = lambda: "it is small"
        assert op("auto") == 0
        assert op.choose("auto", (), {}).reason == "it is small"
        assert op("triton") == 1
    finally:
        del OPS["for a test"]


# Launch configurations.


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    home = module("tuning")
    monkeypatch.setenv("SLM_KERNELS_CACHE", str(tmp_path / "deep" / "tuned.json"))
    home._Cache.of.cache_clear()
    return home


def test_without_being_asked_nothing_is_measured(tuning) -> None:
    def launch(config):
        raise AssertionError

    assert tuning.tuned("k", (1,), Config(8, 4), [Config(16, 4)], launch) == Config(8, 4)
    assert not tuning.cache_file().exists()


def test_the_fastest_that_fits_is_measured_once_and_kept(tuning, monkeypatch) -> None:
    launched = []

    def launch(config):
        launched.append(config.block)
        if config.block == 64:
            raise RuntimeError("out of shared memory")

    def milliseconds(run):
        run()
        return {8: 3.0, 16: 1.0, 32: 2.0}[launched[-1]]

    monkeypatch.setattr(tuning, "_enabled", lambda: True)
    monkeypatch.setattr(tuning, "_machine", lambda: "a GPU")
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    candidates = [Config(b, 4) for b in (64, 8, 16, 32)]
    assert tuning.tuned("k", (1, "bf16"), Config(8, 4), candidates, launch) == Config(16, 4)
    assert launched == [8, 64, 16, 32]
    tuning._Cache.of.cache_clear()  # as a later process would
    assert tuning.tuned("k", (1, "bf16"), Config(8, 4), candidates, launch) == Config(16, 4)
    assert len(launched) == 4
    monkeypatch.setattr(tuning, "_machine", lambda: "another GPU")
    tuning.tuned("k", (1, "bf16"), Config(8, 4), candidates, launch)
    assert len(launched) == 8


def test_a_broken_cache_file_is_measured_anew(tuning, monkeypatch) -> None:
    tuning.cache_file().parent.mkdir(parents=True)
    tuning.cache_file().write_text("{")
    monkeypatch.setattr(tuning, "_enabled", lambda: True)
    monkeypatch.setattr(tuning, "_machine", lambda: "a GPU")
    monkeypatch.setattr(tuning, "_milliseconds", lambda run: 1.0)
    assert tuning.tuned("k", (), Config(8, 4), [], lambda config: None) == Config(8, 4)
    assert "a GPU" in tuning.cache_file().read_text()
