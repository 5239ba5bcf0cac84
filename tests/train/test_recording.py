"""Playing a recording back is the same training: with a stand-in for CUDA graphs everywhere, and with those on a GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from slm.config.errors import ConfigError
from slm.data.prepare import prepare
from slm.model.decoder import Decoder
from slm.pipeline import launch
from slm.planning import plan_run
from slm.run import Run
from slm.train import recording, step
from slm.train.loop import Session
from slm.train.measure import OF_THE_MACHINE
from slm.train.metrics import read_metrics
from slm.train.parallel.world import World
from slm.train.progress import Silent
from slm.train.recording import MOST, WARM_UP, Recorded

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Notes:
    """Stands in for a GPU's recorder: what is played works on the tensors that it was recorded with, and overwrites its results."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.plain, self.played, self.recorded = 0, 0, 0

    def plainly(self, work: Callable[[], Any]) -> Any:
        self.plain += 1
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        sums = (torch.full((), float("nan")), torch.full((), float("nan")))

        def again() -> None:
            self.played += 1
            for place, value in zip(sums, work(), strict=True):
                place.copy_(value)

        return again, sums


@pytest.fixture
def _notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "CudaRecorder", Notes)
    monkeypatch.setattr(recording, "check_place", lambda *_: None)


def trained(run: Run) -> Session:
    """Its session, behind the last step."""
    corpus = prepare(run.data, run.tokenizer, run.impl.data_dir)
    device = torch.device(run.impl.device if run.impl.device != "auto" else "cpu")
    session = Session(run, corpus, World(0, 1, device), Path(str(run.log.dir)), Silent())
    Path(str(run.log.dir)).mkdir(parents=True, exist_ok=True)
    try:
        session.start()
        while session.state.step < session.course.end:
            session.train_step()
            session.write_down()
        session.saver.wait()
    finally:
        session.close()
    return session


def records(folder: str) -> list[dict[str, Any]]:
    found = read_metrics(Path(folder) / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in OF_THE_MACHINE} for record in found]


def addresses(session: Session) -> list[int]:
    return [p.grad.data_ptr() for p in session.state.model.parameters() if p.grad is not None]


# ---- what is decided on the host ------------------------------------------------------------------------------


@pytest.mark.usefixtures("_notes")
@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, 1),
        ({"impl__micro_batch": 3}, 2),  # 8 rows are 3 + 3 + 2
        ({"train__optim__name": "muon", "train__ema": {"decay": 0.9}}, 1),
        ({"train__precision": "bf16"}, 1),
        ({"model__aux": {"name": "mtp", "depths": 1}}, 1),
    ],
    ids=["plain", "two shapes", "muon", "bf16", "mtp"],
)
def test_recorded_training_is_plain_training_to_the_last_bit(tiny, changes: dict[str, Any], shapes: int) -> None:
    plain = trained(tiny(log__dir="plain", **changes))
    played = trained(tiny(log__dir="played", impl__cuda_graphs=True, **changes))
    for a, b in zip(plain.state.model.parameters(), played.state.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert records("plain") == records("played")
    notes = played.stepper.recorded.recorder
    assert (notes.recorded, notes.plain) == (shapes, WARM_UP * shapes)
    assert notes.played > notes.plain


@pytest.mark.usefixtures("_notes")
@pytest.mark.parametrize("settings", [{}, {"top_k": 8}], ids=["all tokens", "top k"])
def test_a_teacher_is_asked_outside_of_what_is_recorded(tiny, settings: dict[str, Any]) -> None:
    trained(tiny(name="teacher", log__dir="runs/teacher"))
    learns = {"train__distill": {"teacher": "runs/teacher", **settings}}
    trained(tiny(log__dir="plain", **learns))
    played = trained(tiny(log__dir="played", impl__cuda_graphs=True, **learns))
    assert records("plain") == records("played")
    assert any("kl" in record for record in records("played"))
    assert played.stepper.recorded.recorder.played > 0


@pytest.mark.usefixtures("_notes")
def test_steps_whose_layers_are_looked_at_are_run_plainly(tiny) -> None:
    looked = {"log__activations": True, "log__every": 2}
    trained(tiny(log__dir="plain", **looked))
    played = trained(tiny(log__dir="played", impl__cuda_graphs=True, **looked))
    assert records("plain") == records("played")
    assert any("activation_rms" in record for record in records("played"))
    notes, steps = played.stepper.recorded.recorder, played.course.end
    assert notes.plain + notes.played == steps
    assert notes.plain >= steps // 2


@pytest.mark.usefixtures("_notes")
def test_a_session_that_ended_keeps_nothing(tiny) -> None:
    session = trained(tiny(impl__cuda_graphs=True))
    weight = weakref.ref(next(session.state.model.parameters()))
    session.stepper.recorded.recordings.clear()  # the stand-in holds on to what it would play
    gc.disable()
    try:
        del session
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("_notes")
def test_gradients_stay_where_a_recording_puts_them(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    real = Session.train_step

    def watched(self: Session) -> None:
        real(self)
        seen.append(addresses(self))

    monkeypatch.setattr(Session, "train_step", watched)
    trained(tiny(impl__cuda_graphs=True))
    assert len(seen[0]) > 10
    assert all(one == seen[0] for one in seen)


def scaled_sum(inputs: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, Tensor]:
    return inputs[0].sum() * factor, factor + 0


def test_no_more_shapes_are_recorded_than_memory_is_kept_for() -> None:
    notes = Notes()
    recorded = Recorded(notes)
    for _ in range(WARM_UP + 2):
        for rows in range(1, MOST + 4):
            nll, _kl = recorded(scaled_sum, (torch.full((rows,), 2.0),), torch.tensor(0.5))
            assert float(nll) == rows
    assert notes.recorded == MOST
    assert notes.played == MOST * 2


def test_what_is_recorded_reads_its_own_inputs_only() -> None:
    recorded = Recorded(Notes())
    for n in range(2 * WARM_UP + 2):
        given, factor = torch.full((4,), float(n)), torch.tensor(float(n))
        nll, kl = recorded(scaled_sum, (given,), factor)
        assert (float(nll), float(kl)) == (4.0 * n * n, n)
        given.fill_(-1), factor.fill_(-1)  # whoever keeps a reference would notice


def test_where_it_can_not_be_it_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device, and this run is on cpu"):
        trained(tiny(impl__cuda_graphs=True))
    cuda = torch.device("cuda")
    moe = Decoder(tiny(model__ffn={"name": "moe", "experts": 4, "top_k": 2, "hidden": 32}).model)
    with pytest.raises(ConfigError, match=r"MixtureModule can't be part of a graph \(the host reads"):
        recording.check_model(moe)
    with pytest.raises(ConfigError, match="for one process, and these are 2"):
        recording.check_place(World(1, 2, cuda))
    recording.check_place(World(0, 1, cuda))
    recording.check_model(Decoder(tiny().model))


def test_it_is_refused_before_text_is_tokenised(tiny) -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        launch(tiny(impl__cuda_graphs=True), console=Console(quiet=True))
    assert not Path("data").exists()
    (warning,) = [w for w in plan_run(tiny(impl__cuda_graphs=True), "tiny")["warnings"] if "cuda_graphs" in w]
    assert warning == "impl.cuda_graphs is for one process on a CUDA GPU, not 1 on cpu: the run will be refused."


def test_the_plan_knows_what_stays(tiny) -> None:
    def planned(**changes: Any) -> dict[str, int]:
        return plan_run(tiny(**changes), "tiny")["memory"]  # type: ignore[no-any-return]

    plain, recorded = planned(), planned(impl__cuda_graphs=True)
    assert plain["gradients"] < recorded["gradients"] == recorded["weights"]
    for changes in ({"log__activations": True}, {"train__batch_ramp": {"start": 64, "over": "1000 tokens"}}):
        assert planned(impl__cuda_graphs=True, **changes)["activations"] == 2 * recorded["activations"]
    uneven, even = planned(impl__cuda_graphs=True, impl__micro_batch=3), planned(impl__micro_batch=3)
    assert uneven["activations"] == 2 * even["activations"]
    assert (
        planned(impl__cuda_graphs=True, impl__micro_batch=4)["activations"]
        == planned(impl__micro_batch=4)["activations"]
    )


# ---- on a GPU -------------------------------------------------------------------------------------------------

GPU: dict[str, Any] = {
    "impl__device": "cuda",
    "impl__micro_batch": 3,
    "log__every": 1,
    "model__attention": {"name": "gqa", "heads": 2, "kv_heads": 1},  # 16 wide, the least that Flex does
}
NARROW = {"model__attention": {"name": "gqa", "heads": 4, "kv_heads": 2}}  # SDPA with a mask
BF16 = {"train__precision": "bf16"}


@on_a_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        NARROW,
        BF16,
        {"train__precision": "fp8"},
        {"impl__compile": "blocks"},
        {"impl__compile": "whole"},
        {"impl__compile": "blocks", "impl__recompute": {"name": "full"}, **BF16},
        {"impl__recompute": {"name": "full"}},
        {"impl__recompute": {"name": "ops"}},
        {"impl__kernels": "torch"},
        {"model__position": {"name": "alibi"}},
        {"train__optim__name": "muon", "train__ema": {"decay": 0.9}},
        {"train__optim__name": "schedule_free", "train__schedule": {"name": "constant"}},
        {"log__activations": True, "log__every": 2},
        {"train__distill": {"teacher": "runs/teacher"}},
        {"train__distill": {"teacher": "runs/teacher", "top_k": 8}, **BF16},
    ],
    ids=lambda changes: "-".join(str(v) for v in changes.values()) or "plain",
)
def test_graphs_train_as_the_kernels_one_by_one(tiny, changes: dict[str, Any]) -> None:
    if "train__distill" in changes:
        trained(tiny(name="teacher", log__dir="runs/teacher", **GPU))
    settings = GPU | changes
    trained(tiny(log__dir="plain", **settings))
    played = trained(tiny(log__dir="played", impl__cuda_graphs=True, **settings))
    assert len(played.stepper.recorded.recordings) == 2
    near = 1e-4 if changes.get("train__precision") is None else 1e-2
    for a, b in zip(records("plain"), records("played"), strict=True):
        if a["kind"] == "train":
            assert b["loss"] == pytest.approx(a["loss"], rel=near)


@on_a_gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_waits_nowhere_in_a_step(tiny, graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session.train_step

    def hasty(self: Session) -> None:
        settled = self.state.step > WARM_UP + 1  # all is compiled, chosen and recorded
        torch.cuda.set_sync_debug_mode("error" if settled else "default")
        try:
            real(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Session, "train_step", hasty)
    trained(tiny(impl__cuda_graphs=graphs, **GPU | {"impl__micro_batch": 4, "log__every": 4}))


WAITS = """
import json, sys, torch
from slm.data.prepare import prepare
from slm.model.decoder import Decoder
from slm.run import Run
from slm.train.loop import train
from slm.train.parallel.world import World
run = Run(**json.loads(sys.argv[1]))
block = type(Decoder(run.model).blocks[0])
real = block.forward
def asks(self, x_BTD, here):
    float(x_BTD.sum())
    return real(self, x_BTD, here)
block.forward = asks
train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), World(0, 1, torch.device("cuda")))
"""


@on_a_gpu
def test_what_waits_for_the_device_is_said(tiny) -> None:
    """In a process of its own, whose device may be left in a bad state."""
    run = tiny(impl__cuda_graphs=True, **GPU)
    command = [sys.executable, "-c", WAITS, run.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "can't be recorded; something in it waits for the device" in done.stderr
