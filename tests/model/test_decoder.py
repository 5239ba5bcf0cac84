"""The decoder as a whole: losses, backends, precisions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from slm.config.errors import ConfigError
from slm.model.decoder import Decoder

from .variants import decoder_of, ids, model_of

DOCS = torch.tensor([[0] * 10 + [1] * 14])


@pytest.mark.parametrize("name", ["gqa", "window", "alibi", "mla"])
@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
def test_backends_agree_with_fp64(backend: str, name: str) -> None:
    wanted = decoder_of(name, "matmul").double()(ids(1), docs_BT=DOCS)
    single = decoder_of(name, backend)(ids(1), docs_BT=DOCS)
    torch.testing.assert_close(single.double(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "option"), [("softcap", "softcap"), ("sinks", "sinks")])
def test_a_backend_that_lacks_an_option_says_so(name: str, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"impl.attention=sdpa can't do .* it has no {option}"):
        decoder_of(name, "sdpa")(ids(1))


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'matmul'"):
        decoder_of("gqa", "matmull")(ids(1))


@pytest.mark.parametrize(
    "name", ["z_loss", "embedding scaled", "embedding norm and bias", "factorised", "padded", "mup"]
)
def test_loss_ignores_padding_and_matches_logits(name: str) -> None:
    model, targets = decoder_of(name), ids(seed=3)
    targets[:, ::3] = -100
    sums = model.loss(model(ids()), targets)
    logits = model.logits(model(ids())).flatten(0, 1)
    assert logits.shape[-1] == 40
    nll = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    torch.testing.assert_close(sums.nll, nll.detach())
    z = logits.logsumexp(-1)[targets.flatten() >= 0].square().sum()
    torch.testing.assert_close(sums.loss, nll + model.config.aux.z_weight * z)
    assert sums.count == (targets >= 0).sum()


def test_padding_the_vocabulary_changes_nothing() -> None:
    padded, plain = (
        decoder_of("padded"),
        Decoder(model_of("padded", embedding={"name": "untied", "head_bias": True})).eval(),
    )
    weights = dict(padded.named_parameters())
    assert weights["embedding.weight"].shape[0] == 48
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(weights[name][: p.shape[0]])
    targets = ids(seed=3)
    for model in (padded, plain):
        model.training_loss(ids(), targets).loss.backward()
    torch.testing.assert_close(padded.logits(padded(ids())), plain.logits(plain(ids())))
    got, wanted = padded.embedding.head.grad, plain.embedding.head.grad
    torch.testing.assert_close(got[:40], wanted)
    assert got[40:].abs().max() == 0


def test_multi_token_prediction_by_hand() -> None:
    """Depth k at place t predicts token t + 1 + k from the state and the embedding of token t + k."""
    model, tokens, targets = decoder_of("mtp"), ids(), ids(seed=5)
    hidden = model(tokens)
    wanted, state = model.loss(hidden, targets).loss, hidden
    _, sequence = model._run(tokens, None, None, None)
    for k, depth in enumerate(model.further, start=1):
        ahead = torch.cat((tokens[:, k:], torch.zeros(2, k, dtype=torch.long)), 1)
        state = depth(state, model.embedding(ahead), sequence, 1)
        inside = state[:, : 24 - k]
        logits = model.logits(inside).flatten(0, 1)
        aims = targets[:, k:].flatten()
        nll = F.cross_entropy(logits, aims, reduction="sum") + 0.01 * logits.logsumexp(-1).square().sum()
        wanted = wanted + 0.3 / 2 * nll
    torch.testing.assert_close(model.training_loss(tokens, targets).loss, wanted)


def test_bf16_loss_is_near_fp32() -> None:
    model = decoder_of("gqa")
    plain = model.loss(model(ids(8)), ids(8, seed=3))
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(model(ids(8)), ids(8, seed=3))
    assert abs(low.nll / plain.nll - 1) < 5e-3


def test_documents_and_a_cache_do_not_mix() -> None:
    model = decoder_of("gqa")
    cache = model.new_cache(1, 24)
    model(ids(1, 4), cache=cache)
    with pytest.raises(ValueError, match="can't be combined"):
        model(ids(1, 4), cache=cache, docs_BT=torch.zeros(1, 4, dtype=torch.long))
