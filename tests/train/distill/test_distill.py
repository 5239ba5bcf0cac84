"""Training with a teacher, online and from a cache, in this process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny_config

from slm import checkpoint
from slm.checkpoint.fingerprint import weights_hash
from slm.cli.distill import cache
from slm.config.errors import ConfigError, RunError
from slm.config.yaml import dump_yaml
from slm.data.loader import Batch, Loader, make_batch
from slm.data.prepare import prepare
from slm.data.store.checked import BLOCK
from slm.model.decoder import Decoder
from slm.model.precision import product_dtype, working_dtype
from slm.run import Run
from slm.train.config import Train
from slm.train.course import Course
from slm.train.distill import fill as filling
from slm.train.distill.cache import TeacherCache, fewer
from slm.train.distill.fill import fill, header_of, plan_for
from slm.train.distill.loss import DistillLoss, loss_module
from slm.train.distill.teacher import OnlineTeacher, open_teacher
from slm.train.loop import TrainResult, train
from slm.train.measure import OF_THE_MACHINE
from slm.train.metrics import read_metrics
from slm.train.objective import LossModule
from slm.train.parallel.world import World
from slm.train.state import build

ALONE = World(0, 1, torch.device("cpu"))
TEACHER = "taught/teacher"


def corpus_of(run: Run):
    return prepare(run.data, run.tokenizer, run.impl.data_dir)


def go(run: Run) -> TrainResult:
    return train(run, corpus_of(run), ALONE)


def weights(path: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.latest(Path(path))).model


def records(path: str, kind: str = "train") -> list[dict]:
    dropped = OF_THE_MACHINE
    found = read_metrics(Path(path) / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in dropped} for r in found if r["kind"] == kind]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher that has been trained for a while, and its text."""
    folder = tmp_path_factory.mktemp("trained")
    places = {"log__dir": str(folder / "teacher"), "impl__data_dir": str(folder / "data")}
    go(Run(**tiny_config(**places, train__budget={"steps": 40}, model__dim=48)))
    return folder


@pytest.fixture
def taught(tiny, trained: Path):
    """Makes runs with that teacher, in this test's own directory."""
    shutil.copytree(trained / "teacher", TEACHER)
    shutil.copytree(trained / "data", "data")

    def make(**changes) -> Run:
        asked = {k: v for k, v in changes.items() if not k.startswith("distill")}
        options = {k.removeprefix("distill__"): v for k, v in changes.items() if k.startswith("distill")}
        return tiny(**asked, train__distill={"teacher": TEACHER} | options)

    return make


def cached(run: Run, out: str = "cache", top_k: int = 6, **changes) -> Path:
    corpus = corpus_of(run)
    plan, rows = plan_for(run, corpus)
    d = run.train.distill
    header = header_of(run, corpus, plan, rows=rows, teacher=d.teacher_hash, top_k=top_k, temperature=d.temperature)
    teacher = open_teacher(run, corpus, d.teacher, d.teacher_hash, torch.device("cpu"))
    fill(Path(out), header | changes, plan, teacher, precision="fp32", batch_rows=3)
    return Path(out)


def test_the_objective_is_the_mix_that_is_declared(taught, tiny) -> None:
    run = taught(distill__weight=0.3, distill__temperature=2.0)
    corpus = corpus_of(run)
    plan, _ = plan_for(run, corpus)
    model, batch = Decoder(run.model).init_weights(0), make_batch(plan, range(4))
    objective = loss_module(run, model, corpus, plan, 12)
    loss, nll, kl = objective(*objective.inputs(batch))
    teacher = checkpoint.restore(TEACHER).model
    where = {"positions_BT": batch.positions_BT, "docs_BT": batch.docs_BT}
    p, q = ((m.logits(m(batch.tokens_BT, **where)) / 2).log_softmax(-1) for m in (model, teacher))
    counted = batch.targets_BT >= 0
    expected = (q.exp() * (q - p)).sum(-1)[counted].sum()
    assert torch.allclose(kl, expected, rtol=1e-4)
    assert torch.allclose(loss, 0.7 * nll + 0.3 * 4 * expected, rtol=1e-4)
    plain, its_nll, none = LossModule(model)(*LossModule(model).inputs(batch))
    assert torch.equal(its_nll, nll)
    assert torch.equal(plain, nll)
    assert float(none) == 0


def test_the_teacher_is_no_part_of_what_is_trained_or_saved(taught) -> None:
    before = weights_hash(TEACHER)
    run = taught()
    result = go(run)
    saved = weights(str(result.run_dir))
    assert {n: t.shape for n, t in saved.items()} == {n: p.shape for n, p in result.model.named_parameters()}
    assert weights_hash(TEACHER) == before
    teacher = OnlineTeacher(checkpoint.restore(TEACHER).model)
    module = DistillLoss(result.model, run.train.distill, teacher)
    assert len(list(module.parameters())) == len(list(result.model.parameters()))
    assert not any(p.requires_grad for p in teacher.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher_reads_in_the_precision_of_the_run(taught, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    real = OnlineTeacher.answer

    def watched(self: OnlineTeacher, batch: Batch) -> tuple[torch.Tensor, ...]:
        seen.add(working_dtype(self.model.embedding.weight))
        return real(self, batch)

    monkeypatch.setattr(OnlineTeacher, "answer", watched)
    go(taught(train__precision=precision, train__budget={"steps": 2}, train__schedule={"name": "constant"}))
    assert seen == {product_dtype(precision)}


def test_the_log_has_the_plain_cross_entropy_and_the_divergence(taught, tiny) -> None:
    go(taught(log__dir="with", train__budget={"steps": 30}))
    go(tiny(log__dir="without", train__budget={"steps": 30}))
    with_, without = records("with"), records("without")
    assert with_[0]["loss"] == without[0]["loss"]  # before the first step students are the same
    assert "kl" not in without[0]
    assert with_[-1]["kl"] < 0.7 * with_[0]["kl"]


@pytest.mark.parametrize("divergence", ["reverse", "js"])
def test_other_divergences_fall_too(taught, divergence: str) -> None:
    go(taught(distill__divergence=divergence, log__dir="d", distill__weight=1.0, distill__top_k=9))
    assert records("d")[-1]["kl"] < records("d")[0]["kl"]


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(taught, monkeypatch: pytest.MonkeyPatch) -> None:
    from slm.train.loop import Session

    go(taught(log__dir="whole", log__every=5))
    real = Session.train_step

    def dies(self) -> None:
        if self.state.step == 7:
            raise RuntimeError("killed")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "train_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            go(taught(log__dir="parts", log__every=5))
    go(taught(log__dir="parts", log__every=5))
    a, b = weights("whole"), weights("parts")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert records("whole") == records("parts")


def test_a_cache_is_made_where_and_of_what_the_recipe_says(taught) -> None:
    run = taught(distill__cache="kept/k5", distill__top_k=5, distill__temperature=2.0)
    Path("r.yaml").write_text(dump_yaml(run.model_dump(mode="json")))
    cache("r.yaml", json=True)
    header = json.loads(Path("kept/k5/cache.json").read_text())
    assert (header["top_k"], header["temperature"]) == (5, 2.0)
    go(run)
    cache("r.yaml", out=Path("other"), top_k=3, json=True)
    assert json.loads(Path("other/cache.json").read_text())["top_k"] == 3


def test_a_cache_is_the_online_teacher_up_to_its_rounding(taught) -> None:
    cached(taught(), top_k=9)
    run = taught(distill__cache="cache", distill__top_k=6, log__dir="cached")
    assert run.identity == taught(distill__top_k=6).identity
    go(taught(distill__top_k=6, log__dir="online"))
    go(run)
    go(taught(distill__cache="cache", distill__top_k=6, log__dir="micro", impl__micro_batch=3))
    for other in ("cached", "micro"):
        for a, b in zip(records("online"), records(other), strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
            assert b["kl"] == pytest.approx(a["kl"], rel=5e-3)


def test_records_say_what_the_teacher_says_and_tokens_may_fall_away(taught) -> None:
    run = taught()
    kept = TeacherCache(cached(run, top_k=9))
    kept.verify()
    plan, rows = plan_for(run, corpus_of(run))

    batch = make_batch(plan, range(rows - 3, rows))
    teacher = checkpoint.restore(TEACHER).model
    hidden = teacher(batch.tokens_BT, positions_BT=batch.positions_BT, docs_BT=batch.docs_BT)
    logq = teacher.logits(hidden).flatten(0, 1).log_softmax(-1)
    found = kept.read(batch.rows)
    top = logq.topk(9)
    assert torch.equal(found.ids_NK, top.indices)
    assert torch.allclose(found.logq_NM[:, :9], top.values, rtol=2e-3, atol=2e-3)
    assert torch.allclose(found.logq_NM.exp().sum(-1), torch.ones(96))
    less = fewer(found, 2)
    assert torch.allclose(less.logq_NM[:, 2].exp(), 1 - top.values[:, :2].exp().sum(-1), atol=2e-3)


def test_filling_goes_on_where_it_was_killed(taught, monkeypatch: pytest.MonkeyPatch) -> None:
    run = taught()
    whole = cached(run, "whole", rows_per_shard=7)
    real, made = filling._records, []

    def dies(layout, plan, teacher, rows, *rest):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(rows)
        return real(layout, plan, teacher, rows, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(filling, "_records", dies)
        with pytest.raises(KeyboardInterrupt):
            cached(run, "parts", rows_per_shard=7)
    (Path("parts") / "shards" / ".00003.rows.1.partial").write_bytes(b"half")
    again = []
    monkeypatch.setattr(filling, "_records", lambda *a: again.append(a[3]) or real(*a))
    parts = cached(run, "parts", rows_per_shard=7)
    assert len(made) == 3
    assert not set(made) & set(again)
    files = lambda folder: {f.name: f.read_bytes() for f in (folder / "shards").iterdir()}  # noqa: E731
    assert files(whole) == files(parts)


def test_damage_to_a_cache_is_named(taught) -> None:
    path = cached(taught(), top_k=6)
    file = path / "shards" / "00000.rows"
    raw = bytearray(file.read_bytes())
    raw[BLOCK + 5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(RunError, match=r"00000\.rows: block 1 "):
        go(taught(distill__cache="cache", distill__top_k=6))
    file.unlink()
    shutil.rmtree("runs")
    with pytest.raises(RunError, match="isn't finished"):
        go(taught(distill__cache="cache", distill__top_k=6))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data__seed": 5}, "another plan"),
        ({"distill__temperature": 2.0}, "another temperature"),
        ({"distill__top_k": 7}, "top_k=6, but the run needs 7"),
        ({"train__budget": {"steps": 13}}, "rows=96, but the run needs 104"),
        ({"distill__teacher_hash": "0" * 16}, "another teacher"),
    ],
)
def test_a_cache_of_something_else_is_refused(taught, changes: dict, why: str) -> None:
    cached(taught(), top_k=6)
    with pytest.raises(ConfigError, match=why):
        go(taught(**{"distill__cache": "cache", "distill__top_k": 6} | changes))


def test_a_directory_holds_one_cache(taught) -> None:
    cached(taught())
    with pytest.raises(ConfigError, match=r"temperature: 1\.0 -> 2\.0"):
        cached(taught(distill__temperature=2.0))


def test_the_identity_has_the_teachers_weights_and_not_its_place(taught, tiny) -> None:
    shutil.copytree(TEACHER, "elsewhere")
    here, there = taught(), taught(distill__teacher="elsewhere")
    assert here.identity == there.identity != tiny().identity
    go(tiny(log__dir=TEACHER + "2", model__dim=48))
    assert taught(distill__teacher=TEACHER + "2").identity != here.identity
    go(here)
    go(there)  # in the same run directory: it is the same experiment
    with pytest.raises(ConfigError, match="not the weights that the experiment is defined with"):
        go(taught(distill__teacher_hash="0" * 16, log__dir="other"))


def test_experiments_without_a_teacher_keep_their_names(tiny) -> None:
    sections = tiny().experiment()
    assert not {"distill", "init_from", "init_from_hash"} & set(sections["train"])
    assert set(sections["train"]) | {"distill", "init_from", "init_from_hash"} == set(Train.model_fields)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"distill__top_k": 257}, "nothing left for the rest"),
        ({"model__vocab": 300}, "vocabulary of 257 tokens and the student one of 300"),
        ({"data__seq_len": 64}, "32 tokens of context, but data.seq_len is 64"),
        ({"tokenizer": {"name": "bpe", "vocab": 257}}, "another tokenizer than the student's text"),
    ],
)
def test_teachers_that_can_not_teach_are_refused(taught, changes: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        go(taught(**changes))


def test_what_makes_no_sense_is_refused_at_once(tiny) -> None:
    with pytest.raises(ConfigError, match="No checkpoint at 'nowhere'"):
        tiny(train__distill={"teacher": "nowhere"})
    with pytest.raises(ConfigError, match="name a teacher"):
        tiny(train__distill={})
    with pytest.raises(ConfigError, match="top_k must be given"):
        tiny(train__distill={"cache": "c"})
    with pytest.raises(ConfigError, match="slm distill cache"):
        tiny(train__distill={"cache": "c", "top_k": 3})


def test_starting_from_given_weights(taught, tiny) -> None:
    run = tiny(train__init_from=TEACHER, model__dim=48, log__dir="on")
    corpus = corpus_of(run)
    plan, _ = plan_for(run, corpus)
    state = build(run, corpus, Loader(plan, 8), Course.of(run, run.costs()), ALONE)
    assert all(torch.equal(p, weights(TEACHER)[n]) for n, p in state.model.named_parameters())
    go(run)
    assert records("on")[0]["loss"] < records(TEACHER)[0]["loss"] - 0.5
    assert run.identity != tiny(model__dim=48).identity
    shutil.rmtree(TEACHER)
    go(run)  # a run that has its own checkpoint doesn't ask for them again


def test_given_weights_of_another_shape_name_the_first_tensor(taught, tiny) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.weight': \(257, 32\) here, \(257, 48\) there"):
        go(tiny(train__init_from=TEACHER))


def test_the_verb_fills_a_cache_that_a_run_reads(taught, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(dump_yaml(taught().model_dump(mode="json")))
    cache("r.yaml", out=Path("c"), top_k=5, json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["top_k"], said["written_shards"]) == (96, 5, 1)
    assert said["bytes"] == 96 * 32 * (4 * 5 + 2) + 4 * -(-96 * 32 * 22 // BLOCK)
    run = taught(distill__cache="c", distill__top_k=5, distill__teacher=None)
    assert run.train.distill.teacher_hash == weights_hash(TEACHER)
    go(run)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["online", "cached"])
def test_two_processes_learn_the_same_from_it(taught, kept: bool) -> None:
    cached(taught())
    more = {"distill__cache": "cache"} if kept else {}
    run = taught(distill__top_k=6, distill__temperature=1.0, log__dir="one", log__eval_every=None, **more)
    Path("r.yaml").write_text(dump_yaml(run.model_dump(mode="json")))
    go(run)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "slm"]
    command = [
        *torchrun,
        "train",
        "r.yaml",
        "log.dir=two",
        "finish.samples=0",
        "finish.export=[]",
        "finish.report=false",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for a, b in zip(records("one"), records("two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["kl"] == pytest.approx(a["kl"], abs=1e-5)


@pytest.mark.slow
def test_a_hugging_face_directory_can_teach(taught) -> None:
    pytest.importorskip("transformers")
    from slm.export import export_hf

    export_hf(checkpoint.restore(TEACHER), Path("hub"))
    short = {"train__budget": {"steps": 7}, "log__eval_every": None}
    go(taught(log__dir="ours", **short))
    run = taught(distill__teacher="hub", log__dir="theirs", **short)
    go(run)
    for a, b in zip(records("ours"), records("theirs"), strict=True):
        assert b["kl"] == pytest.approx(a["kl"], rel=1e-4)
    file = Path("hub/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert taught(distill__teacher="hub").identity != run.identity
