"""Real directories, as save_pretrained writes them, through `slm model import` and out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support import slm

from slm.checkpoint import restore
from slm.config.errors import ConfigError, RunError
from slm.data.tokenizer import BytePairs
from slm.export.importing import read_directory

transformers = pytest.importorskip("transformers")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny Qwen3 with a byte-level tokenizer, its weights in several bf16 shards."""
    torch.manual_seed(0)
    numbers = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
    config = transformers.Qwen3Config(vocab_size=300, max_position_embeddings=64, tie_word_embeddings=True, **numbers)
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hub", max_shard_size="40KB")
    tokenizer = BytePairs(vocab=290).load(
        lambda: ["a text of some words, and of others, for the tokenizer to train on"]
    )
    (tmp_path / "hub" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    assert len(list((tmp_path / "hub").glob("*.safetensors"))) > 1
    return tmp_path / "hub"


def test_in_generate_and_out_again_bit_equal(directory: Path) -> None:
    done = slm("model", "import", str(directory), "--out", "runs/q", "--json")
    assert json.loads(done.stdout)["class"] == "Qwen3ForCausalLM"
    assert json.loads(slm("generate", "runs/q", "a text", "-n", "4", "--json").stdout)["tokens"]
    out = json.loads(slm("export", "runs/q", "--to", "hf", "--json").stdout)["outputs"][0]
    assert out["verified"]
    assert out["class"] == "Qwen3ForCausalLM"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    ours = safetensors.torch.load_file(Path(out["path"]) / "model.safetensors")
    assert len(ours) == len(theirs) - 1  # the tied head
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert restore("runs/q").state["imported"] == {"model_type": "qwen3", "dtype": "torch.bfloat16"}


def test_a_run_is_not_overwritten_and_eval_asks_for_a_store(directory: Path) -> None:
    slm("model", "import", str(directory), "--out", "runs/q")
    again = slm("model", "import", str(directory), "--out", "runs/q", code=2)
    assert "holds a run already" in again.stderr
    assert "--store" in slm("eval", "runs/q", code=2).stderr


def _config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "qwen33"}, "Did you mean 'qwen3'"),
        ({"hidden_act": "sill"}, "Did you mean 'silu'"),
        ({"rope_parameters": {"rope_type": "linaer", "factor": 2.0}}, "Did you mean 'linear'"),
        ({"num_key_value_heads": 3}, "doesn't divide heads"),
    ],
)
def test_settings_that_slm_does_not_have_are_named(directory: Path, changes: dict, expected: str) -> None:
    _config(directory, **changes)
    with pytest.raises(ConfigError, match=expected):
        read_directory(directory)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"intermediate_size": 96}, r"gate_proj.* has shape \(80, 48\)"),
        ({"num_hidden_layers": 4}, "has no tensor 'model.layers.3"),
        ({"num_hidden_layers": 2}, "tensors that a model of its config.json doesn't have, such as 'model.layers.2"),
    ],
)
def test_weights_that_do_not_fit_are_named(directory: Path, changes: dict, expected: str) -> None:
    _config(directory, **changes)
    with pytest.raises(RunError, match=expected):
        read_directory(directory)


def test_files_that_are_missing_damaged_or_pickles_are_explained(directory: Path) -> None:
    shard = sorted(directory.glob("*.safetensors"))[0]
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(RunError, match=shard.name):
        read_directory(directory)
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="a pickle, which slm doesn't open"):
        read_directory(directory)
    (directory / "config.json").write_text("[")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_directory(directory)
    with pytest.raises(ConfigError, match="can't be read"):
        read_directory(directory / "nowhere")
