from __future__ import annotations

import pytest
import torch

from slm.config.registry import REGISTRIES
from slm.model.attention.backends import BACKENDS
from slm.model.config import Model
from slm.model.decoder import Decoder

MIXERS = [
    (a, p, r)
    for a in REGISTRIES["attention"].parts
    for p in REGISTRIES["position"].parts
    for r in REGISTRIES["residual"].parts
]


def build(attention: str | dict = "gqa", position: str = "rope", residual: str = "pre", **changes) -> Decoder:
    model = Model(
        **{"dim": 32, "layers": 2, "vocab": 40, "context": 24, "attention": attention if isinstance(attention, dict) else {"name": attention, "heads": 4, "qk_norm": True},
           "position": position, "residual": residual, "init": {"name": "normal", "sigma": 0.2}} | changes
    )  # fmt: skip
    return Decoder(model).init_weights(0).eval()


def ids(rows: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixer", MIXERS, ids=str)
@torch.no_grad()
def test_nothing_leaks_across_documents_or_from_the_future(mixer: tuple, backend: str) -> None:
    model = build(*mixer)
    model.attention_backend = backend
    docs = torch.tensor([[0] * 10 + [1] * 14]).expand(2, -1)
    positions = torch.tensor([[*range(10), *range(14)]]).expand(2, -1)
    tokens, other = ids(), ids()
    other[:, :10] = ids(seed=1)[:, :10]
    a, b = (model(t, positions_BT=positions, docs_BT=docs) for t in (tokens, other))
    torch.testing.assert_close(a[:, 10:], b[:, 10:])
    assert (a[:, :10] - b[:, :10]).abs().max() > 1e-3  # the test can fail: the first document did change
    later = tokens.clone()
    later[:, 20:] = ids(seed=2)[:, 20:]
    torch.testing.assert_close(model(later, positions_BT=positions, docs_BT=docs)[:, :20], a[:, :20])


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
@torch.no_grad()
def test_a_packed_document_equals_the_document_alone(mixer: tuple) -> None:
    model = build(*mixer)
    docs = torch.tensor([[0] * 10 + [1] * 14])
    positions = torch.tensor([[*range(10), *range(14)]])
    tokens = ids(rows=1)
    packed = model(tokens, positions_BT=positions, docs_BT=docs)
    torch.testing.assert_close(packed[:, 10:], model(tokens[:, 10:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixer", MIXERS, ids=str)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(mixer: tuple, backend: str) -> None:
    model = build(*mixer)
    model.attention_backend = backend
    tokens = ids()
    full = model.logits(model(tokens))
    cache = model.new_cache(2, 24)
    pieces = [model(tokens[:, :7], cache=cache), model(tokens[:, 7:10], cache=cache)]
    pieces += [model(tokens[:, i : i + 1], cache=cache) for i in range(10, 24)]
    torch.testing.assert_close(model.logits(torch.cat(pieces, 1)), full, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="holds 24"):
        model(tokens[:, :1], cache=cache)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_with_fp64(backend: str) -> None:
    model = build().double()
    docs = torch.tensor([[0] * 10 + [1] * 14])
    model.attention_backend = "matmul"
    wanted = model(ids(1), docs_BT=docs)
    single = build()
    single.attention_backend = backend
    torch.testing.assert_close(single(ids(1), docs_BT=docs).double(), wanted, atol=2e-5, rtol=1e-4)


def test_loss_ignores_padding_and_matches_logits() -> None:
    model = build(aux={"name": "z_loss", "weight": 0.1})
    tokens, targets = ids(), ids(seed=3)
    targets[:, ::3] = -100
    sums = model.loss(model(tokens), targets)
    logits = model.logits(model(tokens)).flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    torch.testing.assert_close(sums.nll, nll.detach())
    z = logits.logsumexp(-1)[targets.flatten() >= 0].square().sum()
    torch.testing.assert_close(sums.loss, nll + 0.1 * z)
    assert sums.count == (targets >= 0).sum()


def test_bf16_loss_is_near_fp32() -> None:
    model = build()
    plain = model.loss(model(ids(8)), ids(8, seed=3))
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(model(ids(8)), ids(8, seed=3))
    assert abs(low.nll / plain.nll - 1) < 5e-3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention": {"name": "gqa", "heads": 5}}, "doesn't divide model.dim"),
        ({"attention": {"name": "gqa", "heads": 4, "kv_heads": 3}}, "doesn't divide heads"),
        ({"attention": {"name": "gqa", "heads": 4, "kv_heads": 8}}, "more than heads"),
        ({"dim": -1}, "greater than 0"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict, expected: str) -> None:
    import pydantic

    from slm.config.errors import ConfigError

    with pytest.raises((ConfigError, pydantic.ValidationError), match=expected):
        Model(**({"dim": 32, "layers": 2, "vocab": 40} | changes))


def test_odd_head_dim_is_refused_by_rope_only() -> None:
    from slm.config.errors import ConfigError

    odd = {"name": "mha", "heads": 2, "head_dim": 7}
    with pytest.raises(ConfigError, match="even"):
        build(**{"attention": odd})
    build(position="none", **{"attention": odd})
