"""`impl.kernels`: set for a run and no longer, refused with the reason, told once."""

from __future__ import annotations

import pytest
import torch

import slm_kernels
from slm.config.errors import ConfigError, RunError
from slm.data.prepare import prepare
from slm.train.config import Impl
from slm.train.kernels import kernels, note
from slm.train.loop import train
from slm.train.optim.steps.newton_schulz import orthogonalise
from slm.train.parallel.world import World
from slm.train.progress import Silent
from slm_kernels import dispatch

CPU = torch.device("cpu")


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def default() -> str:
    return dispatch._default["impl"]


def test_it_holds_for_a_run_and_no_longer() -> None:
    before = default()
    with kernels("torch", CPU):
        assert default() == "torch"
    assert default() == before
    with pytest.raises(KeyError), kernels("compile", CPU):
        raise KeyError
    assert default() == before


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MISSING", "triton can't be imported")
    with (
        pytest.raises(ConfigError, match=r"impl.kernels=triton can't run here: triton can't be imported"),
        kernels("triton", CPU),
    ):
        pass
    with (
        pytest.raises(RunError, match=r"impl.kernels=auto: slm_kernels.rms_norm: impl=triton can't"),
        kernels("auto", CPU),
    ):
        slm_kernels.rms_norm(torch.ones(2, 4), impl="triton")


def test_it_is_told_what_ran_and_why() -> None:
    with kernels("torch", CPU):
        assert note() == ""  # of an earlier run nothing is told
        slm_kernels.rms_norm(torch.ones(2, 4))
        orthogonalise(torch.ones(1, 2, 3))
        assert note() == "Kernels: torch (asked for): rms_norm, newton_schulz"


def test_muon_goes_through_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    op = dispatch.OPS["newton_schulz"]
    monkeypatch.setattr(op, "torch", lambda g, coefficients, room, dtype: seen.append((len(coefficients), room)) or g)
    orthogonalise(torch.ones(1, 2, 3), "polar_express", 4)
    assert seen == [(4, 1.01)]


def test_a_run_says_once_what_it_takes(tiny) -> None:
    said = Said()
    run = tiny(impl__kernels="torch")
    train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), World(0, 1, CPU), said)
    assert said.lines.count("Attention: matmul (the fastest on a CPU up to 512 keys)") == 1
    [line] = [one for one in said.lines if one.startswith("Kernels: ")]
    assert line.startswith("Kernels: torch (asked for): ")
    assert {"rms_norm", "embedding", "linear_cross_entropy"} <= set(
        line.removeprefix("Kernels: torch (asked for): ").split(", ")
    )


def test_attention_that_a_backend_cannot_do_is_refused_before_the_first_step(tiny) -> None:
    run = tiny(impl__attention="flex")
    with pytest.raises(ConfigError, match="FlexAttention has no gradient on a CPU"):
        train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), World(0, 1, CPU))


def test_the_choices_of_the_section() -> None:
    assert Impl().kernels == "auto"
    for name in ("auto", "triton", "torch", "compile"):
        assert Impl(kernels=name).kernels == name
