"""What a family makes of keys that are missing or null, and models that its class can't compute after all."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import safetensors.torch
import torch

from slm.config.errors import ConfigError
from slm.export.families import Unfit
from slm.export.families.tensors import to_theirs
from slm.export.importing import read_directory
from slm.model.config import Model
from slm.model.decoder import Decoder

from .family_case import TINY, Case, case
from .family_cases import CASES
from .test_families import IDS, our_model, their_model

transformers = pytest.importorskip("transformers")


def find(name: str) -> Case:
    return next(c for c in CASES if c.name == name)


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.name)
def test_missing_keys_mean_what_they_mean_to_the_class(one: Case) -> None:
    """Published files leave keys out. What is read without the class's help is what it would have filled in, or refused."""
    variants = []
    for heads in (
        {},
        {"num_attention_heads": 12} if "num_attention_heads" in one.numbers else {},
    ):  # 12: no class's default
        numbers = one.numbers | heads
        variants += [{k: v for k, v in numbers.items() if k != missing} for missing in (None, *numbers)]
        variants += [numbers | {"num_key_value_heads": None}] if "num_key_value_heads" in numbers else []
    compared = 0
    for variant in variants:
        try:
            completed = getattr(transformers, one.config_class)(**copy.deepcopy(variant)).to_dict()
        except Exception:  # sizes that don't go together: classes refuse them or fall over them, each in its way
            continue
        try:
            wanted = one.family.read(completed | one.extra).canonical()
        except ConfigError:
            continue
        try:
            found = one.family.read(variant | one.extra).canonical()
        except ConfigError:  # a key that must be there
            continue
        assert found == wanted, sorted(set(one.numbers) - set(variant))
        compared += 1
    assert compared > 1


def parts_of(name: str, **changes: Any) -> Model:
    """The model of a case with some of its parts' fields changed: ``slot__field``."""
    one = find(name)
    data = one.family.read(getattr(transformers, one.config_class)(**one.numbers).to_dict()).model_dump(mode="json")
    for path, value in changes.items():
        slot, _, key = path.partition("__")
        if key:
            data[slot][key] = value
        else:
            data[slot] = value
    return Model(**data)


HEADS_OF_40 = {
    "dim": 40,
    "attention__heads": 3,
    "attention__kv_heads": 3,
    "attention__head_dim": 16,
    "attention__scale": 0.25,
}
DYNAMIC = {"name": "dynamic", "factor": 2.0, "original": 16}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("gemma", {"ffn__activation": "gelu"}),  # read as its tanh form
    ("gemma3_text", {"attention__softcap": 3.0}),  # a key that nothing reads
    ("gemma2", {"attention__scale": 2.5}),  # no 1 / sqrt of a whole number
    ("gemma2", HEADS_OF_40),
    ("gemma3_text", HEADS_OF_40),
    ("arcee", HEADS_OF_40),
    ("jais2", HEADS_OF_40),
    ("minicpm3", {"embedding__logit_divisor": 3.4}),  # width / a whole number
    ("llama", {"position__scaling": DYNAMIC}),  # classes stretch from the model's context only
    ("phi3", {"position__scaling": {"name": "linear", "factor": 2.0}}),
    ("recurrent_gemma", {"position__scaling": {"name": "linear", "factor": 2.0}}),
    ("recurrent_gemma", {"ffn__activation": "silu"}),  # its recurrence has the same activation
    ("codegen heads", {"attention__heads": 6, "attention__kv_heads": 6, "attention__head_dim": 8, "position__fraction": 0.5}),  # four shards of heads
    ("falcon", {"position": {"name": "alibi"}}),  # rounded to bf16
    ("falcon", {"attention__kv_heads": 2, "residual": {"name": "pre"}}),  # groups stand beside a feed-forward only
    ("gpt_neo", {"attention__scale": 12**-0.5}),  # it divides by nothing
    ("biogpt", {"norm__eps": 1e-12}),  # its own layer_norm_eps is ignored
    ("openai-gpt", {"ffn__activation": "gelu"}),  # read as its tanh form
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), REFUSED, ids=str)
def test_models_that_the_class_loads_as_another_are_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Unfit):
        find(name).family.write(parts_of(name, **changes))


NOPE = {"position": {"name": "none"}, "layout": {"name": "uniform"}, "attention__window": None}
COMPUTED: list[tuple[str, dict[str, Any]]] = [
    ("exaone4", NOPE),
    ("cohere2", NOPE),
    ("smollm3", NOPE),
    ("ministral", {"attention__window": None}),
    ("gemma2", {"layout": {"name": "uniform"}}),
    ("granite", {"embedding__scale": "sqrt_dim", "attention__head_dim": 16}),
    ("gemma", {"embedding__scale": 48**0.5}),
    ("cohere", {"attention__head_dim": 16}),
    ("stablelm parallel qk_norm", {"attention__kv_heads": 1}),
    ("falcon new", {"attention__kv_heads": 1}),
    ("falcon serial", {"attention__kv_heads": 4}),
    ("gpt_neo", {"layout": {"name": "uniform"}, "attention__window": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), COMPUTED, ids=str)
@torch.no_grad()
def test_models_that_the_class_can_compute_are_written_for_it(name: str, changes: dict[str, Any]) -> None:
    model, one = parts_of(name, **changes), find(name)
    config = getattr(transformers, one.config_class)(**one.family.write(model), pad_token_id=None)
    config._attn_implementation = "eager"
    theirs = getattr(transformers, one.family.architecture)(config).eval()
    torch.manual_seed(0)
    ours = Decoder(model).eval()
    for p in ours.parameters():
        p.copy_(torch.randn(p.shape) * 0.1)
    theirs.load_state_dict(to_theirs(one.family, model, dict(ours.named_parameters())), strict=False)
    wanted = theirs(IDS).logits
    assert wanted.std() > 0.01, "the comparison would be empty"
    torch.testing.assert_close(ours.logits(ours(IDS)), wanted, atol=1e-5 * max(1.0, float(wanted.std())), rtol=0)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.7,
    "mscale_all_dim": 0.5,
}
FURTHER = [
    case("llama", "LlamaConfig", max_position_embeddings=16, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 8}),
    *(case(c.name, c.config_class, base=c.numbers, rope_parameters=YARN) for c in CASES if c.name in ("youtu", "deepseek_v2", "deepseek_v3", "minicpm3")),
    case("deepseek_v2", "DeepseekV2Config", base=find("deepseek_v2").numbers, mlp_bias=True),
    case("cohere2", "Cohere2Config", head_dim=16),
]  # fmt: skip


@pytest.mark.parametrize("one", FURTHER, ids=lambda c: f"{c.name} {c.numbers.get('rope_parameters', '')}"[:30])
@torch.no_grad()
def test_further_options_agree_and_go_round(one: Case) -> None:
    """All at once only: past its context, dynamic scaling turns cached keys otherwise (`DynamicNTK`)."""
    theirs = their_model(one)
    ours = our_model(one, theirs)
    wanted = theirs(IDS).logits
    torch.testing.assert_close(ours.logits(ours(IDS)), wanted, atol=1e-5 * max(1.0, float(wanted.std())), rtol=0)
    again = getattr(transformers, one.config_class)(**one.family.write(ours.config))
    assert one.family.read(again.to_dict()).canonical() == ours.config.canonical()


def test_a_missing_key_is_named() -> None:
    numbers = {k: v for k, v in find("youtu").numbers.items() if k != "num_attention_heads"}
    with pytest.raises(ConfigError, match="has no 'num_attention_heads'"):
        find("youtu").family.read(numbers)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("falcon", {"alibi": True}),
        ("falcon", {"num_ln_in_parallel_attn": 2}),
        ("falcon new", {"parallel_attn": False}),
        ("gpt_neo", {"attention_types": [[["global", "local"], 2]]}),
        ("openai-gpt", {"afn": "tanh"}),
    ],
)
def test_what_the_class_or_slm_lacks_is_refused_by_name(name: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(keys))):
        find(name).family.read(find(name).numbers | keys)


def test_every_whole_width_of_rotation_is_kept() -> None:
    """58 / 100 * 100 is a little less than 58 in floating point."""
    numbers = find("gptj").numbers
    for rotated in range(2, 101, 2):
        model = find("gptj").family.read(numbers | {"n_embd": 400, "rotary_dim": rotated})
        assert model.position.rotated(100) == rotated  # type: ignore[attr-defined]
        assert find("gptj").family.write(model)["rotary_dim"] == rotated


def test_first_gemma_files_mean_the_tanh_form() -> None:
    assert (
        find("gemma").family.read(TINY | {"head_dim": 16, "hidden_act": "gelu"}).ffn.canonical().activation
        == "gelu_tanh"
    )  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
@torch.no_grad()
def test_the_language_model_is_taken_out_of_a_larger_one(tmp_path, prefix: str) -> None:
    one = find("gemma3_text caps biases")
    theirs = their_model(one)
    tensors = {prefix + k.removeprefix("model."): v.clone() for k, v in theirs.named_parameters()}
    safetensors.torch.save_file(tensors | {"vision_tower.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    text = {k: v for k, v in theirs.config.to_dict().items() if k != "architectures"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    ours = read_directory(tmp_path).model
    torch.testing.assert_close(ours.logits(ours(IDS)), theirs(IDS).logits, atol=1e-5, rtol=0)
