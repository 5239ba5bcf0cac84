"""Every shipped recipe: it composes, it can be planned without its data, and its whole path trains at toy scale."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from slm.config.compose import compose
from slm.config.errors import ConfigError
from slm.pipeline import launch
from slm.planning import plan_run
from slm.run import Run
from slm.train.course import Course, resolved

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = {"quickstart", "toy", "toy-teacher"}
TOKENS_PER_PARAM = {
    "quickstart": 0.73,
    "toy": 1.0,
    "toy-teacher": 0.62,
    "speedrun": 20,
    "5b": 20,
    "3b": 100,
    "minicpm-1.2b": 810,
    "tinyllama-1.1b": 2700,
    "olmo2-1b": 2700,
    "openelm-270m": 5400,
    "smollm2-1.7b": 6400,
    "mobilellm-125m": 8100,
    "qwen3-0.6b-like": 10000,
    "smollm2-360m": 11300,
    "smollm2-135m": 15600,
}
"""What the recipes' first lines say, to two or three digits."""
HF_CLASSES = {
    "quickstart": "LlamaForCausalLM",
    "toy": "LlamaForCausalLM",
    "toy-teacher": "LlamaForCausalLM",
    "speedrun": None,
    "5b": "Qwen3ForCausalLM",
    "3b": "Qwen3ForCausalLM",
    "minicpm-1.2b": None,
    "tinyllama-1.1b": "LlamaForCausalLM",
    "olmo2-1b": "Olmo2ForCausalLM",
    "openelm-270m": None,
    "smollm2-1.7b": "LlamaForCausalLM",
    "mobilellm-125m": "LlamaForCausalLM",
    "qwen3-0.6b-like": "Qwen3ForCausalLM",
    "smollm2-360m": "LlamaForCausalLM",
    "smollm2-135m": "LlamaForCausalLM",
}
each = pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
large = pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in SMALL], ids=lambda p: p.stem)


@cache
def recipe(path: Path) -> Run:
    return compose(str(path), [], schema=Run).config


def with_changes(data: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set fields that are there and set already; the others stay as they are."""
    for key, value in changes.items():
        if data.get(key) is not None:
            data[key] = value


def shrunk(run: Run) -> Run:
    """The recipe at toy scale: parts, optimiser, rules, schedule, and stages of the mixture stay; sizes and texts go."""
    data = run.model_dump(mode="json")
    model = data["model"] | {"dim": 64, "layers": 2, "vocab": 272, "context": 64}
    with_changes(model["attention"], {"heads": 4, "kv_heads": 2, "head_dim": 16})
    with_changes(model["ffn"], {"hidden": 128})
    with_changes(model["layout"], {"multiple": 16})
    members = {
        name: {"source": {"name": "synthetic", "count": 64, "seed": i}} for i, name in enumerate(run.data.members)
    }
    stages = [stage | {"until": f"{i + 1} steps"} for i, stage in enumerate(data["data"]["mixture"])]
    if stages:
        stages[-1]["until"] = None
        data["data"] |= {"sources": members, "mixture": stages}
    else:
        data["data"] |= {"source": next(iter(members.values()))["source"], "sources": None}
    data["data"] |= {"seq_len": 32, "heldout": 0.1}
    tokenizer = data["tokenizer"] | ({"vocab": 272} if "vocab" in data["tokenizer"] else {})
    data["train"] |= {"budget": {"steps": 2}, "batch_tokens": 128, "precision": "fp32"}
    with_changes(data["train"]["schedule"], {"warmup": "0 steps", "decay": "1 steps"})
    return Run(**data | {
        "model": model, "tokenizer": tokenizer, "impl": {"device": "cpu", "threads": 1, "micro_batch": 2},
        "log": {"every": 1, "eval_every": "1 steps", "checkpoint_every": "1 steps"}, "finish": {"samples": 1},
    })  # fmt: skip


@each
def test_it_says_where_it_comes_from(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert recipe(path).name == path.stem
    assert recipe(path).model.source


@each
@pytest.mark.parametrize("processes", [1, 8])
def test_its_batch_can_be_shared(path: Path, processes: int) -> None:
    run = recipe(path)
    rows = run.train.batch_tokens // run.data.seq_len
    share, rest = divmod(rows, processes)
    assert not rest
    assert not run.impl.micro_batch or share % run.impl.micro_batch == 0


@large
def test_its_batch_can_be_shared_by_64(path: Path) -> None:
    run = recipe(path)
    assert run.train.batch_tokens // run.data.seq_len % 64 == 0
    assert run.train.precision == "bf16"  # said, so that the identity is the same where there is no GPU to ask


@each
def test_it_can_be_planned_without_its_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a plan asks no network"))
    run = recipe(path)
    plan = plan_run(run, path.stem, device="H100", processes=8)
    assert {
        "recipe", "identity", "params", "tokens", "tokens_per_param", "steps", "batch_tokens", "flops_total", "memory",
        "data", "export", "device", "warnings",
    } <= plan.keys()  # fmt: skip
    assert plan["tokens_per_param"] == pytest.approx(TOKENS_PER_PARAM[path.stem], rel=0.05)
    assert plan["export"]["hf"]["class"] == HF_CLASSES[path.stem]
    assert plan["export"]["hf"]["class"] or plan["export"]["hf"]["reason"]
    assert not [w for w in plan["warnings"] if "model.context" in w]
    assert {d["source"] for d in plan["data"]} == set(run.data.members)
    assert sum(d["wanted_tokens"] for d in plan["data"]) == pytest.approx(plan["tokens"], rel=1e-3)
    assert all(d["tokens"] is None and d["missing"] for d in plan["data"])
    parts = ("weights", "optimizer", "teacher", "gradients", "exchange", "activations", "checkpoint_copy", "framework")
    assert plan["memory"]["per_rank_bytes"] == sum(plan["memory"][part] for part in parts)
    assert plan["device"]["fits"] == (path.stem not in ("3b", "5b")), plan["memory"]
    assert not (Path("data")).exists()


@large
def test_its_whole_path_works_at_toy_scale(path: Path) -> None:
    """Its sources with their mixture, its kind of tokenizer, training, evaluation, samples, export, report; and another run over the same stores."""
    run = recipe(path)
    small = shrunk(run)
    assert small.train.optim == run.train.optim
    assert small.model.residual == run.model.residual
    done = launch(small)
    assert done["steps"] == 2
    assert done["bpb"] > 0
    assert done["baselines"]
    assert len(done["samples"]) == 1
    assert Path(done["report"]).is_file()
    assert done["export"][0]["verified"] == (HF_CLASSES[path.stem] is not None), done["export"][0]
    again = launch(
        small.with_(
            name="again", train=small.train.with_(seed=1), finish={"samples": 0, "export": [], "baselines": False}
        )
    )
    assert again["steps"] == 2


def test_both_stages_of_minicpm_are_trained() -> None:
    small = shrunk(recipe(ROOT / "recipes" / "minicpm-1.2b.yaml"))
    assert [s.until is None for s in small.data.mixture] == [False, True]
    assert small.train.optim.rules[0].tensor_class == "matrix"


def test_a_device_without_a_data_sheet_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"GTX 9999: slm has no data sheet"):
        plan_run(recipe(ROOT / "recipes" / "toy.yaml"), "toy", device="GTX 9999")


def test_the_table_in_the_docs_is_of_these_recipes() -> None:
    lines = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    rows = {
        c[0]: c[1:]
        for line in lines
        if line.startswith("| ") and (c := [x.strip() for x in line.strip("|").split("|")])
    }
    rows.pop("recipe")
    assert rows.keys() == {p.stem for p in RECIPES} - SMALL
    for name, (params, tokens, ratio, flops, _) in rows.items():
        run = recipe(ROOT / "recipes" / f"{name}.yaml")
        costs = run.costs()
        budget = resolved(Course.of(run, costs), costs)
        assert params == f"{costs.params['unique'] / 1e6:.0f}M"
        scale = (1e12, "T") if budget.tokens > 9.9e11 else (1e9, "B")
        assert tokens == f"{budget.tokens / scale[0]:.3g}{scale[1]}"
        assert ratio == f"{budget.tokens_per_param:.0f}"
        assert flops == f"{budget.flops:.3g}"


def test_flops_are_those_of_rows_as_long_as_they_are_and_not_of_the_model_s_context() -> None:
    """A model that could read 40,960 tokens, trained on rows of 4,096, spends what a model of that context spends."""
    run = compose(str(ROOT / "recipes" / "qwen3-0.6b-like.yaml"), ["model.context=40960"], schema=Run).config
    assert run.data.seq_len == 4096
    short = run.model.with_(context=4096).costs().flops_per_token
    assert plan_run(run, "")["flops_per_token"] == short == run.costs().flops_per_token
    assert run.model.costs().flops_per_token["train"] > 1.5 * short["train"]
    by_flops = run.with_(train=run.train.with_(budget={"flops": 1e21}))
    assert Course.of(by_flops, by_flops.costs()).total == pytest.approx(
        1e21 / short["train"] / run.train.batch_tokens, abs=1
    )


def test_each_stage_spends_the_flops_of_its_own_rows() -> None:
    stages = [
        {"name": "short"},
        {"name": "long", "from": "50%", "change": {"data.seq_len": 1024, "model.context": 1024}},
    ]
    run = recipe(ROOT / "recipes" / "toy.yaml")
    staged = run.with_(train=run.train.with_(stages=stages))
    plan = plan_run(staged, "")
    short, long = (run.model.with_(context=n).costs(n).flops_per_token["train"] for n in (run.data.seq_len, 1024))
    assert plan["flops_total"] == pytest.approx(plan["tokens"] * (short + long) / 2)
    assert plan["flops_total"] > 1.05 * plan_run(run, "")["flops_total"]
