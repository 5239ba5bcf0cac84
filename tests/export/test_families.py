"""Each family against transformers: a tiny random model, imported, gives the same logits, at once and token by token."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from slm.export.families import FAMILIES
from slm.export.families.tensors import to_theirs
from slm.export.importing import load

from .family_case import Case
from .family_cases import CASES

transformers = pytest.importorskip("transformers")
IDS = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(0))


def their_model(case: Case):
    """A tiny model of their class with random weights: everything off its start, so that nothing cancels."""
    config = getattr(transformers, case.config_class)(**case.numbers)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, case.family.architecture)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = case.spread(name, p)
            p.add_(torch.randn(p.shape, generator=generator) * spread)
    return model


def our_model(case: Case, theirs):
    """The same, imported through config.json's content and the state dict, as from files."""
    config = case.family.read(theirs.config.to_dict() | case.extra)
    tensors = {name: t.detach() for name, t in theirs.state_dict().items()}
    return load(case.family, config, tensors)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@torch.no_grad()
def test_logits_agree_at_once_and_token_by_token(case: Case) -> None:
    theirs = their_model(case)
    ours = our_model(case, theirs)
    wanted = theirs(IDS).logits
    assert wanted.std() > 0.1, "the comparison would be empty"
    allowed = case.tolerance * max(1.0, float(wanted.std()))  # rounding grows with the logits
    torch.testing.assert_close(ours.logits(ours(IDS)), wanted, atol=allowed, rtol=0)
    cache = ours.new_cache(2, IDS.shape[1])
    steps = [ours(IDS[:, :9], cache=cache)] + [ours(IDS[:, i : i + 1], cache=cache) for i in range(9, IDS.shape[1])]
    torch.testing.assert_close(ours.logits(torch.cat(steps, 1)), wanted, atol=allowed, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@torch.no_grad()
def test_every_tensor_goes_round_bit_equal_and_the_config_too(case: Case) -> None:
    theirs = their_model(case)
    ours = our_model(case, theirs)
    back = to_theirs(case.family, ours.config, dict(ours.named_parameters()))
    original = dict(theirs.named_parameters())
    assert set(back) == set(original)
    for name, tensor in original.items():
        assert torch.equal(back[name], tensor), name
    written = case.family.write(ours.config)
    again = getattr(transformers, case.config_class)(**written)
    config = case.family.read(again.to_dict() | case.extra)
    assert config.canonical() == ours.config.canonical()


def test_every_family_has_a_case() -> None:
    assert {case.family.model_type for case in CASES} == {family.model_type for family in FAMILIES}


def _plain_rope(config: dict) -> dict:
    """Configs of before transformers 5: the base and the scaling as keys of their own."""
    given = dict(config.pop("rope_parameters"))
    return config | {"rope_theta": given.pop("rope_theta"), "rope_scaling": given | {"type": given.pop("rope_type")}}


def _neox(config: dict) -> dict:
    given = config.pop("rope_parameters")
    return config | {"rotary_pct": given["partial_rotary_factor"], "rotary_emb_base": given["rope_theta"]}


def _gemma3(config: dict) -> dict:
    given = config.pop("rope_parameters")
    config.pop("layer_types")
    own = {
        "rope_theta": given["full_attention"]["rope_theta"],
        "rope_local_base_freq": given["sliding_attention"]["rope_theta"],
    }
    return config | own | {"sliding_window_pattern": 6}


def _bloom(config: dict) -> dict:
    return config | {"n_embed": config.pop("hidden_size"), "num_attention_heads": config.pop("n_head")}


OLD = {
    "gpt2": (dict, {r"^transformer\.": ""}),
    "gptj": (dict, {r"^transformer\.": ""}),
    "gpt_neo": (dict, {r"^transformer\.": ""}),
    "openai-gpt": (dict, {r"^transformer\.": ""}),
    "opt": (dict, {r"^model\.": ""}),
    "bloom": (_bloom, {r"^transformer\.": ""}),
    "gpt_neox": (_neox, {r"^lm_head": "embed_out"}),
    "llama gelu linear": (_plain_rope, {}),
    "llama llama3": (_plain_rope, {}),
    "phi3 longrope long": (_plain_rope, {}),
    "gemma3_text": (_gemma3, {}),
}
"""Case -> (its config, its tensors' names) as published before the class took its present form."""


@pytest.mark.parametrize("name", OLD)
@torch.no_grad()
def test_published_spellings_of_earlier_years(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    older, renames = OLD[name]
    theirs = their_model(case)
    config = case.family.read(older(copy.deepcopy(theirs.config.to_dict())))
    assert config.canonical() == case.family.read(theirs.config.to_dict()).canonical()
    tensors = {}
    for key, tensor in theirs.state_dict().items():
        for pattern, replacement in renames.items():
            key = re.sub(pattern, replacement, key)
        tensors[key] = tensor
    buffers = {
        "gpt2": "h.0.attn.bias",
        "gpt_neox": "gpt_neox.layers.0.attention.masked_bias",
        "llama gelu linear": "model.layers.0.self_attn.rotary_emb.inv_freq",
    }
    if name in buffers:  # files of the time carry masks and frequencies
        tensors[buffers[name]] = torch.ones(4)
    ours = load(case.family, config, tensors)
    allowed = case.tolerance * max(1.0, float(theirs(IDS).logits.std()))
    torch.testing.assert_close(ours.logits(ours(IDS)), theirs(IDS).logits, atol=allowed, rtol=0)
