"""Cutting models: exact where it can be, refused where it can't."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slm.config.errors import ConfigError
from slm.model.attention.softmax import GroupedQuery, MultiHead, MultiQuery
from slm.model.axes import axes_of
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.model.embedding import Tied, Untied
from slm.model.ffn.dense import Gelu, SwiGLU
from slm.model.norm import LayerNormPart, RMSNormPart
from slm.model.prune import Shape, cut, measure, smaller
from slm.model.prune.cut import choose, top

V, T = 40, 16
NORM = RMSNormPart(eps=1e-12)  # eps counts for more where the vectors are shorter: that much a cut is never exact
GQA = GroupedQuery(heads=6, kv_heads=3, head_dim=8)


def model(**changes) -> Decoder:
    parts = {
        "dim": 24,
        "layers": 4,
        "vocab": V,
        "context": T,
        "attention": GQA,
        "ffn": SwiGLU(hidden=20),
        "norm": NORM,
    } | changes
    decoder = Decoder(Model(**parts)).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():  # away from what is equal at the start
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return decoder.eval()


def rows(count: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    tokens = torch.randint(0, V, (count, T), generator=torch.Generator().manual_seed(2))
    return [(tokens, torch.arange(T).expand(count, T), torch.zeros(count, T, dtype=torch.long))]


def logits(decoder: Decoder) -> Tensor:
    return decoder.logits(decoder(rows()[0][0])).detach()


def pruned(decoder: Decoder, **shape) -> Decoder:
    to = smaller(decoder.config, Shape(**shape))
    return cut(decoder, to, measure(decoder, rows()), rows())[0]


VARIANTS = {
    "llama": {},
    "untied": {"embedding": Untied(rank=None)},
    "factorised": {"embedding": Tied(rank=12)},
    "gpt2": {"attention": MultiHead(heads=4, qkv_bias=True, out_bias=True), "ffn": Gelu(hidden=20, bias=True), "norm": LayerNormPart(), "position": "learned"},
    "gemma": {"residual": "sandwich", "norm": RMSNormPart(gain="one_plus", eps=1e-12), "embedding": Tied(scale="sqrt_dim")},
    "qk_norm": {"attention": GQA.with_(qk_norm="head")},
    "qk_norm_full": {"attention": GQA.with_(qk_norm="full")},
    "qk_norm_each": {"attention": GQA.with_(qk_norm="each", sinks=True, gate="head")},
    "gate": {"attention": GQA.with_(gate="element")},
    "neox": {"residual": {"name": "parallel", "own_norms": 2}, "norm": LayerNormPart()},
    "series": {"ffn": {"name": "series", "hidden": 20}},
    "depth_scale": {"residual": {"name": "pre", "depth_scale": 1.4}},
    "post": {"residual": "post"},
    "dyt": {"norm": "dyt"},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_cutting_nothing_changes_no_bit(name: str) -> None:
    whole = model(**VARIANTS[name])
    c = whole.config
    same = pruned(
        whole, layers=c.layers, dim=c.dim, heads=c.attention.heads, kv_heads=c.attention.groups, hidden=c.ffn.hidden
    )
    assert same.config == c
    assert torch.equal(logits(same), logits(whole))


def zero(decoder: Decoder, axis: str, ids: list[int]) -> None:
    """Silence indices of an axis: what is written along it and what reads it."""
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            for dimension, at in enumerate(axes_of(decoder, name) or ()):
                if at == axis and "norm" not in name:
                    parameter.index_fill_(dimension, torch.tensor(ids), 0.0)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in ("gpt2", "neox", "dyt")])
def test_cutting_channels_that_are_zero_keeps_the_logits(name: str) -> None:
    whole = model(**VARIANTS[name])
    zero(whole, "dim", [1, 7, 8, 23])
    zero(whole, "hidden", [0, 3, 19])
    small = pruned(whole, dim=20, hidden=17)
    assert small.config.dim == 20
    assert small.embedding.weight.shape[1] in (20, 12)
    assert torch.allclose(logits(small), logits(whole), rtol=1e-4, atol=1e-5)


def test_without_the_norms_correction_they_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from slm.model.norm import Norm

    whole = model()
    zero(whole, "dim", [1, 7, 8, 23])
    monkeypatch.setattr(Norm, "rescale_", lambda self, factor: None)
    assert not torch.allclose(logits(pruned(whole, dim=20)), logits(whole), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "qk_norm", "qk_norm_each", "gate"])
def test_heads_that_say_nothing_go_and_groups_stay_together(name: str) -> None:
    whole = model(**VARIANTS[name])
    with torch.no_grad():
        for block, group in zip(whole.blocks, (0, 1, 2, 1), strict=True):
            block.attention.o.weight[:, group * 16 : group * 16 + 16] = 0
            block.attention.v.weight[group * 8 : group * 8 + 8] = 0
    small = pruned(whole, heads=4, kv_heads=2)
    assert (small.config.attention.heads, small.config.attention.kv_heads) == (4, 2)
    assert small.config.attention.head_dim == 8
    assert torch.allclose(logits(small), logits(whole), atol=1e-5)


def test_single_heads_leave_their_groups() -> None:
    whole = model()
    importance = measure(whole, rows())
    kept = choose(whole.config, smaller(whole.config, Shape(heads=3)), importance)
    for block, scores in importance.heads.items():
        best = [2 * g + int(scores[2 * g + 1] > scores[2 * g]) for g in range(3)]
        assert kept.along[block]["heads"].tolist() == best
        assert kept.along[block]["q"].tolist() == [8 * h + i for h in best for i in range(8)]
    assert pruned(whole, heads=3).config.attention.kv_heads == 3


def test_blocks_that_do_nothing_go() -> None:
    whole = model(layers=5)
    with torch.no_grad():
        for i in (1, 3):
            whole.blocks[i].attention.o.weight.zero_()
            whole.blocks[i].ffn.down.weight.zero_()
    importance = measure(whole, rows())
    assert importance.layers[1] == pytest.approx(0, abs=1e-6)
    small = pruned(whole, layers=3)
    assert len(small.blocks) == 3
    assert torch.equal(logits(small), logits(whole))


def test_depth_alone_needs_no_axes() -> None:
    small = pruned(model(attention={"name": "mla", "heads": 2}, ffn={"name": "moe"}), layers=2)
    assert len(small.blocks) == 2


def test_importances_are_means_over_tokens() -> None:
    whole = model(layers=1)
    found = measure(whole, [*rows(), *rows()])
    seen = {}
    whole.blocks[0].ffn.down.register_forward_pre_hook(lambda m, x: seen.__setitem__("ffn", x[0]))
    whole.blocks[0].attention.o.register_forward_pre_hook(lambda m, x: seen.__setitem__("o", x[0]))
    whole(rows()[0][0])
    assert torch.allclose(found.hidden[0].float(), seen["ffn"].abs().mean((0, 1)), rtol=1e-4)
    assert torch.allclose(found.heads[0].float(), seen["o"].unflatten(-1, (6, 8)).norm(dim=-1).mean((0, 1)), rtol=1e-4)
    assert not whole.blocks[0].ffn.gate._forward_pre_hooks
    assert len(found.dim) == 24


def test_the_largest_stay_in_order() -> None:
    assert top(torch.tensor([1.0, 5.0, 5.0, 0.0, 7.0]), 3).tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("changes", "shape", "why"),
    [
        ({}, {"dim": 25}, "from 24 to 25"),
        ({}, {"hidden": 21}, "from 20 to 21"),
        ({}, {"heads": 6, "kv_heads": 2}, "2 query heads share a key/value head here, and 3"),
        ({}, {"heads": 4}, "kv_heads=3 doesn't divide heads=4"),
        ({"attention": MultiHead(heads=4)}, {"heads": 2, "kv_heads": 1}, "its own keys and values"),
        ({"attention": MultiQuery(heads=4)}, {"heads": 2, "kv_heads": 2}, "serves all|from 1 to 2"),
        ({"attention": {"name": "mla", "heads": 4}}, {"heads": 2}, "doesn't say how its heads are cut"),
        ({"ffn": {"name": "moe"}}, {"hidden": 8}, "doesn't say how its inner channels are cut"),
        ({"position": "alibi"}, {"heads": 3}, "none can be taken out"),
        ({"layout": "repeat"}, {"dim": 16}, "shares its weights"),
        ({"layout": "shared_ffn"}, {"layers": 2}, "shares its weights"),
        ({"layout": {"name": "pattern", "pattern": "nope,full"}}, {"layers": 2}, "isn't like the others"),
        ({"parametrization": {"name": "mup", "base_dim": 24}}, {"dim": 16}, "logit factor depends on the shape"),
    ],
)  # fmt: skip
def test_what_can_not_be_cut_is_refused_with_the_reason(changes: dict, shape: dict, why: str) -> None:
    parts = {"dim": 24, "layers": 4, "vocab": V, "context": T, "attention": GQA, "ffn": SwiGLU(hidden=20)}
    with pytest.raises(ConfigError, match=why):
        smaller(Model(**parts | changes), Shape(**shape))


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"attention": {"name": "mla", "heads": 2}}, r"Can't cut blocks\.0\.attention\."), ({"conv": "canon"}, r"attention\.conv\.weight"), ({"aux": {"name": "mtp"}}, "isn't cut")],
)  # fmt: skip
def test_parameters_that_nobody_claims_are_named(changes: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        pruned(model(**changes), dim=16)
