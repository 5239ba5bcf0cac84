from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from slm.checkpoint import Restored
from slm.config.errors import ConfigError, RunError
from slm.data.tokenizer import BytePairs
from slm.export import export_hf
from slm.export.families import FAMILIES, family_of
from slm.export.families.tensors import to_theirs
from slm.export.hf import write
from slm.export.targets import Target, choose
from slm.export.verify import compare
from slm.model.auxiliary import NoAux
from slm.model.config import Model
from slm.model.decoder import Decoder

transformers = pytest.importorskip("transformers")
TOKENIZER = BytePairs(vocab=300).load(
    lambda: ["some other text to train the tokenizer on, with enough different words in it", "def f(x): return x\n"]
)


def restored(**changes) -> Restored:
    shape = {"dim": 48, "layers": 2, "vocab": 300, "context": 64, "init": {"name": "normal", "sigma": 0.1}} | changes
    model = Decoder(Model(**shape)).init_weights(0).eval()
    with torch.no_grad():  # gains of 1 would hide a norm that is lost or swapped
        for p in model.parameters():
            if p.ndim == 1:
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    config = {"name": "t", "data": {"source": {"name": "synthetic"}}}
    return Restored(model, config, TOKENIZER.to_bytes(), {"tokens": 1, "identity": "x"}, Path("ck"))


SHAPES = {
    "gqa": {"attention": {"name": "gqa", "heads": 6, "kv_heads": 2}},
    "mha": {"attention": {"name": "mha", "heads": 4}},
    "mqa": {"attention": {"name": "gqa", "heads": 4, "kv_heads": 1}},
    "free head_dim": {"attention": {"name": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 20}},
    "untied": {"embedding": "untied"},
    "other base, eps": {"position": {"name": "rope", "base": 500.0}, "norm": {"name": "rmsnorm", "eps": 1e-3}},
    "qk_norm": {"attention": {"name": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 32, "qk_norm": True}},
    "qk_norm untied": {"attention": {"name": "mha", "heads": 3, "qk_norm": True}, "embedding": "untied"},
    "padded vocabulary": {"vocab": 320},
}


@pytest.mark.parametrize("name", SHAPES)
def test_exports_are_equal_in_transformers(name: str, tmp_path: Path) -> None:
    done = export_hf(restored(**SHAPES[name]), tmp_path / "out")
    assert done.verified
    assert done.max_abs_diff <= 1e-5
    assert done.top1_agreement == 1.0
    assert done.architecture == ("Qwen3ForCausalLM" if "qk_norm" in name else "LlamaForCausalLM")
    assert set(done.to_json()) >= {
        "target",
        "class",
        "path",
        "rewrites",
        "verified",
        "max_abs_diff",
        "kl",
        "top1_agreement",
    }


def test_the_directory_is_what_others_read(tmp_path: Path) -> None:
    export_hf(restored(), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["tie_word_embeddings"] is True
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "def g(y): return some <|other|> text 123\n"
    assert tokenizer(text)["input_ids"] == TOKENIZER.encode(text)
    assert tokenizer.eos_token_id == TOKENIZER.eot_id
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    out = model.generate(torch.tensor([[0, 5, 6]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape[1] <= 7


REFUSED = {
    "residual": {"residual": "parallel"},
    "ffn": {"ffn": "series"},
    "norm": {"norm": "dyt"},
    "position": {"position": "alibi"},
}


@pytest.mark.parametrize("slot", REFUSED)
def test_what_no_class_computes_is_refused_with_the_part(slot: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{slot} is"):
        export_hf(restored(**REFUSED[slot]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_class_says_why_not() -> None:
    target, reasons = choose(Model(dim=48, layers=2, vocab=300, context=64, ffn="series"))
    assert target is None
    assert set(reasons) == {family.architecture for family in FAMILIES if family.exports}


def test_a_refusal_is_real(tmp_path: Path) -> None:
    """Written as Llama all the same, ALiBi gives other logits: the check would catch a wrong table."""
    other, forced = restored(position="alibi"), restored()
    forced.model.load_state_dict(other.model.state_dict())
    target, _ = choose(forced.model.config)
    write(forced.model, target, forced, tmp_path / "out")
    assert compare(other.model, tmp_path / "out").max_abs_diff > 1e-3
    assert compare(forced.model, tmp_path / "out").max_abs_diff < 1e-5


@pytest.mark.parametrize("slot", ["residual", "ffn", "norm"])
def test_the_weights_of_other_refused_parts_have_no_place_in_the_class(slot: str) -> None:
    """Forced into Llama's names, some have none, or some of Llama's are missing."""
    model, plain = restored(**REFUSED[slot]).model, restored().model
    names, own = ({n: p.detach() for n, p in m.named_parameters()} for m in (model, plain))
    llama = family_of("llama")
    wanted = set(to_theirs(llama, plain.config, own))
    if slot == "residual":  # one norm less
        assert set(to_theirs(llama, model.config, names)) < wanted
    else:
        with pytest.raises(RunError, match="has no single place"):
            to_theirs(llama, model.config, names)


def test_llama_itself_refuses_heads_that_do_not_divide_the_width() -> None:
    shape = {"dim": 50, "attention": {"name": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 20}}
    target, reasons = choose(restored(**shape).model.config)
    assert target is not None
    assert target.architecture == "MistralForCausalLM"  # which computes the same and has no such rule
    assert "no multiple of heads=4" in reasons["LlamaForCausalLM"]
    with pytest.raises(Exception, match="not a multiple"):
        transformers.LlamaConfig(hidden_size=50, num_attention_heads=4, num_key_value_heads=2, head_dim=20)


def test_a_part_that_the_table_does_not_know_is_refused() -> None:
    class Another(NoAux):
        """A loss with a head of its own, say."""

    target, reasons = choose(restored().model.config.with_(aux=Another()))
    assert target is None
    assert "model.aux is" in reasons["LlamaForCausalLM"]


def test_an_unequal_export_leaves_nothing_and_keeps_the_old_one(tmp_path: Path, monkeypatch) -> None:
    import dataclasses

    from slm.export import hf

    export_hf(restored(), tmp_path / "out")
    good, _ = choose(restored().model.config)
    swap = {"gate": "up", "up": "gate"}
    maps = tuple(
        dataclasses.replace(m, ours=tuple(o.replace(f"ffn.{k}", f"ffn.{v}") for o in m.ours))
        if (k := next((k for k in swap if f"ffn.{k}." in "".join(m.ours)), None)) and (v := swap[k])
        else m
        for m in good.family.maps
    )
    wrong = Target(dataclasses.replace(good.family, maps=maps), good.config)
    monkeypatch.setattr(hf, "choose", lambda model: (wrong, {}))
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"other logits .* allowed 1\.\de-05"):
        export_hf(restored(), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_paragraph_and_keeps_the_old_export(tmp_path: Path, monkeypatch) -> None:
    export_hf(restored(), tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        export_hf(restored(), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_transformers_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'slm\[hf\]'"):
        export_hf(restored(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
