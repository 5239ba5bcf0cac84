"""The command line as a user meets it: real processes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import tiny_config

from slm.config.registry import REGISTRIES


def slm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "slm", *arguments], capture_output=True, text=True)


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    # CPU time of the process, which on an idle machine is its wall time: a busy one must not fail the test.
    times = []
    for _ in range(3):
        before = os.times()
        assert slm("--help").returncode == 0
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.3
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "slm", "--help"], capture_output=True, text=True)
    for heavy in ("torch", "hydra", "pydantic", "numpy"):
        assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() == heavy]


TYPOS = {
    "train.optim.lrr=1": "train.optim.lr",
    "model/atention=gqa": "attention",
    "model/attention=gqaa": "gqa",
    "data.seqlen=128": "seq_len",
    "train.budget.token_per_param=3": "tokens_per_param",
    "trian=x": "train",
    "model=quikstart": "quickstart",
    "impl.device=gpu": "'cuda'",
}


@pytest.mark.parametrize("typo", TYPOS)
def test_typos_give_one_paragraph_and_exit_2(typo: str) -> None:
    done = slm("train", "quickstart", typo)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert TYPOS[typo].rpartition(".")[2] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_that_is_not_there_lists_those_that_are() -> None:
    done = slm("train", "quikstart")
    assert done.returncode == 2
    assert "Did you mean 'quickstart'?" in done.stderr
    assert "toy" in done.stderr


@pytest.mark.parametrize(("override", "why"), [("model.attention.heads=7", "doesn't divide"), ("model.attention.kv_heads=12", "more than heads"), ("train.batch_tokens=100", "whole number of rows")])  # fmt: skip
def test_impossible_shapes_are_refused(override: str, why: str) -> None:
    done = slm("plan", "quickstart", override)
    assert done.returncode == 2
    assert why in done.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in slm("plan", "quickstart", "trian=x", "--debug").stderr


def test_plan_json_has_the_contracts_fields() -> None:
    done = slm("plan", "quickstart", "--json")
    plan = json.loads(done.stdout)
    assert set(plan) >= {"recipe", "identity", "params", "tokens", "tokens_per_param", "steps", "batch_tokens", "flops_total", "memory", "data", "export", "device", "warnings"}  # fmt: skip
    assert plan["steps"] * plan["batch_tokens"] == plan["tokens"]
    assert plan["export"]["hf"]["class"] == "LlamaForCausalLM"
    assert plan["data"][0]["tokens"] is None
    assert not Path("data").exists()  # a plan makes nothing


def test_model_list_and_show() -> None:
    listed = json.loads(slm("model", "list", "--json").stdout)["models"]
    names = {m["name"]: m for m in listed}
    assert set(names["smollm2-135m"]) >= {"name", "params", "attention", "ffn", "norm", "source"}
    shown = json.loads(slm("model", "show", "smollm2-135m", "--context", "2048", "--json").stdout)
    assert shown["params"]["unique"] == names["smollm2-135m"]["params"] == 134_515_008
    assert set(shown["params"]) == {"total", "unique", "embedding", "head", "non_embedding"}
    assert set(shown["flops_per_token"]) == {"forward", "train", "train_palm"}
    assert shown["kv_cache_bytes"] == 2 * 2 * 3 * 64 * 30 * 2048
    assert "Did you mean 'smollm2-135m'" in slm("model", "show", "smolm2-135m").stderr


def test_parts_lists_the_registry_and_shows_one() -> None:
    importlib.import_module("slm.data.importers")  # a slot that no run needs

    found = {(p["slot"], p["name"]) for p in json.loads(slm("parts", "--json").stdout)["parts"]}
    assert found == {(slot, name) for slot, r in REGISTRIES.items() if not slot.startswith("test_") for name in r.parts}
    [part] = json.loads(slm("parts", "gqa", "--json").stdout)["parts"]
    assert {"kv_heads", "heads", "head_dim"} <= {f["name"] for f in part["fields"]}
    assert all(f["meaning"] for f in part["fields"])
    assert "Did you mean 'gqa'" in slm("parts", "gqqa").stderr


def test_doctor_measures_this_machine() -> None:
    checks = {c["name"]: c["value"] for c in json.loads(slm("doctor", "--json").stdout)["checks"]}
    assert "GFLOP/s" in checks["CPU matmul fp32 / bf16"]
    assert "sdpa" in checks["attention backends"]


def test_from_data_to_export_in_one_sitting() -> None:
    """tokenize, stats, verify, plan, show, train, eval, generate, export: each with --json, on one tiny run."""
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config(name="sitting")))
    store = json.loads(slm("data", "tokenize", "tiny.yaml", "--json").stdout)["store"]
    assert json.loads(slm("data", "stats", store, "--json").stdout)["splits"]["train"]["documents"] > 50
    assert json.loads(slm("data", "verify", store, "--json").stdout)["ok"]
    assert 0.9 < json.loads(slm("data", "plan", "tiny.yaml", "--json").stdout)["fill"] <= 1
    assert json.loads(slm("data", "show", "tiny.yaml", "--step", "3", "--json").stdout)["rows"][0]["row"] == 24
    done = slm("train", "tiny.yaml", "--json")
    summary = json.loads(done.stdout)
    assert summary["bpb"] > 0
    assert summary["export"][0]["max_abs_diff"] <= 1e-5
    evaluated = json.loads(slm("eval", "sitting", "--json").stdout)
    assert evaluated["bpb"]["heldout"] == pytest.approx(summary["bpb"], rel=1e-4)
    assert set(evaluated) >= {"checkpoint", "bpb", "tasks", "groups"}
    generated = json.loads(slm("generate", "sitting", "aab", "-n", "8", "--json").stdout)
    assert len(generated["tokens"]) <= 8
    plain = slm("generate", "sitting", "aab", "-n", "8")
    assert plain.stdout == "aab" + generated["text"] + "\n"
    exported = json.loads(slm("export", "runs/sitting", "--to", "hf", "--out", "elsewhere", "--json").stdout)[
        "outputs"
    ][0]
    assert exported["verified"]
    assert Path("elsewhere/config.json").exists()
    assert "no such target" in slm("export", "sitting", "--to", "gguff").stderr
    assert "max |logit difference|" in slm("export", "sitting").stdout
    raw = bytearray((Path(store) / "shards" / "00000.tok").read_bytes())
    raw[10] ^= 1
    (Path(store) / "shards" / "00000.tok").write_bytes(raw)
    broken = slm("data", "verify", store)
    assert broken.returncode == 1
    assert "00000.tok: block 0" in broken.stderr


def test_no_checkpoint_is_exit_1_with_a_hint() -> None:
    done = slm("generate", "nowhere", "x")
    assert done.returncode == 1
    assert "slm train quickstart" in done.stderr


def test_multirun_trains_every_combination() -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config(finish={"samples": 0, "export": [], "report": False})))
    done = slm("train", "tiny.yaml", "-m", "model/attention=gqa,mha", "train.seed=0,1", "--json")
    runs = json.loads(done.stdout)["runs"]
    assert len({r["identity"] for r in runs}) == 4
    assert {p.name for p in Path("runs/tiny").iterdir()} == {
        f"model.attention={a},train.seed={s}" for a in ("gqa", "mha") for s in (0, 1)
    }


def test_plugin_part_trains_and_its_checkpoint_is_not_imported_unasked() -> None:
    Path("my_parts.py").write_text(
        "from slm.model.ffn import ReluSquared, ffn\n"
        "@ffn.register('mine')\n"
        "class Mine(ReluSquared):\n"
        "    '''My own feed-forward.'''\n"
    )
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config(finish={"samples": 0, "export": [], "report": False})))
    done = slm("train", "tiny.yaml", "+plugins=[my_parts]", "model/ffn=mine", "--json")
    assert json.loads(done.stdout)["steps"] == 12, done.stderr
    refused = slm("eval", "tiny")
    assert refused.returncode == 2
    assert "--plugins" in refused.stderr
    assert json.loads(slm("eval", "tiny", "--plugins", "my_parts", "--json").stdout)["bpb"]["heldout"] > 0
