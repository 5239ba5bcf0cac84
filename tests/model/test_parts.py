"""Single parts against slow, plain computations of the same formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from slm.model.attention.backends import Scores, attend
from slm.model.attention.rglru import linear_scan
from slm.model.attention.softmax import log_n_factor
from slm.model.conv import ShortConv
from slm.model.ffn.series import SeriesActivation
from slm.model.norm import LayerNormPart, RMSNormPart
from slm.model.position.alibi import alibi_slopes
from slm.model.position.base import Position
from slm.model.position.rope import Rotary
from slm.model.sequence import Encoding, Here, Mask

from .variants import decoder_of, model_of


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bare(tokens: int, docs: torch.Tensor | None = None) -> Here:
    """What a layer sees of a row of zeros without positions."""
    ids = torch.zeros(1, tokens, dtype=torch.long)
    return Here(ids, torch.arange(tokens)[None], Mask(tokens, ids.device, docs), Encoding(Position(), None))


def test_slopes_of_the_paper_and_of_eight_and_twelve_heads() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(12) == [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert alibi_slopes(4, largest=4.0) == [0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
def test_scores_by_hand(backend: str) -> None:
    """softmax over cap tanh(q k s / cap) - slope distance, and a sink that takes weight; one query at a time."""
    q, k, v = noise(1, 4, 9, 6), noise(1, 2, 9, 6, seed=1), noise(1, 2, 9, 5, seed=2)
    fused = backend == "sdpa"
    cap, sinks, slopes, window = (
        None if fused else 1.5,
        None if fused else noise(4, seed=3),
        torch.tensor([0.5, 0.25, 0.1, 0.0]),
        4,
    )
    scores = Scores(0.7, window, cap, slopes, sinks)
    out = attend(q, k, v, Mask(9, q.device), scores, backend=backend)
    for h in range(4):
        for t in range(9):
            keys = range(max(0, t - window + 1), t + 1)
            s = torch.stack([q[0, h, t] @ k[0, h // 2, j] * 0.7 for j in keys])
            s = s if cap is None else cap * (s / cap).tanh()
            s = s - slopes[h] * torch.tensor([t - j for j in keys])
            both = s if sinks is None else torch.cat((s, sinks[h : h + 1]))
            weight = both.softmax(0)[: len(s)]
            torch.testing.assert_close(
                out[0, h, t], sum(w * v[0, h // 2, j] for w, j in zip(weight, keys, strict=True))
            )


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rotary = Rotary(8, 100.0, None)
    x, y = noise(1, 1, 1, 8).expand(1, 1, 12, 8), noise(1, 1, 1, 8, seed=1).expand(1, 1, 12, 8)
    tables = rotary.tables(torch.arange(12)[None])
    q, k = rotary.rotate(x, tables)[0, 0], rotary.rotate(y, tables)[0, 0]
    torch.testing.assert_close(q.norm(dim=-1), x[0, 0].norm(dim=-1))
    for gap in (0, 1, 5):
        products = [float(q[t + gap] @ k[t]) for t in range(12 - gap)]
        assert max(products) - min(products) < 1e-5


def test_log_n_factor() -> None:
    factor = log_n_factor(torch.tensor([[0, 5, 7, 63]]), 8)[0, 0, :, 0]
    torch.testing.assert_close(factor, torch.tensor([1.0, 1.0, 1.0, 2.0]))  # log_8 64 = 2


def test_linear_scan_is_the_recurrence() -> None:
    a, x = noise(2, 13, 3).sigmoid(), noise(2, 13, 3, seed=1)
    h, wanted = torch.zeros(2, 3), []
    for t in range(13):
        h = a[:, t] * h + x[:, t]
        wanted.append(h)
    torch.testing.assert_close(linear_scan(a, x), torch.stack(wanted, 1))


def test_short_convolution_is_torchs_and_stays_in_the_document() -> None:
    conv = ShortConv("c", 5, 4, bias=True, residual=True)
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    x = noise(1, 10, 5)
    wanted = x + F.conv1d(F.pad(x.mT, (3, 0)), conv.weight[:, None], conv.bias, groups=5).mT
    torch.testing.assert_close(conv(x, bare(10)), wanted)
    docs = torch.tensor([[0] * 6 + [1] * 4])
    torch.testing.assert_close(conv(x, bare(10, docs))[:, 6:], conv(x[:, 6:], bare(4)))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_a_row_may_be_shorter_than_the_convolution(tokens: int) -> None:
    conv, x = ShortConv("c", 5, 7, bias=False, residual=False), noise(1, tokens, 5)
    torch.nn.init.normal_(conv.weight)
    whole = bare(tokens, torch.zeros(1, tokens, dtype=torch.long))
    torch.testing.assert_close(conv(x, whole), conv(x, bare(tokens)))
    apart = bare(tokens, torch.arange(tokens)[None])
    torch.testing.assert_close(conv(x, apart), x * conv.weight[:, -1])


def test_series_of_one_term_starts_as_the_activation() -> None:
    series = SeriesActivation(1, 6, F.gelu)
    with torch.no_grad():
        series.scales.fill_(series.starts["scales"])
        series.shifts.copy_(series.starts["shifts"].expand_as(series.shifts))
    torch.testing.assert_close(series(noise(4, 6)), F.gelu(noise(4, 6)))


@pytest.mark.parametrize("name", ["moe", "moe one expert a token"])
def test_a_mixture_is_a_loop_over_tokens_and_its_penalty_is_switchs(name: str) -> None:
    decoder = decoder_of(name).train()
    module, part, x = decoder.blocks[0].ffn, model_of(name).ffn, noise(2, 7, 32)
    here = bare(7)
    got, share = module(x, here), module.router(x).softmax(-1)
    used = torch.zeros(part.experts)
    for b in range(2):
        for t in range(7):
            weight, chosen = share[b, t].topk(part.top_k)
            weight = weight / weight.sum() if part.normalise else weight
            used[chosen] += 1
            wanted = sum(w * module._expert(int(e), x[b, t][None])[0] for w, e in zip(weight, chosen, strict=True))
            torch.testing.assert_close(got[b, t], wanted, atol=1e-5, rtol=1e-5)
    if part.balance:
        balance = part.balance * part.experts * float((used / used.sum()) @ share.detach().flatten(0, 1).mean(0))
        assert float(here.penalties[0]) == pytest.approx(balance)
    else:
        assert not here.penalties


@pytest.mark.parametrize("gain", ["plain", "one_plus", "none"])
def test_norms_by_hand_in_low_precision_too(gain: str) -> None:
    x = noise(3, 16) * 5
    for part, centred in ((RMSNormPart(gain=gain, eps=1e-3), False), (LayerNormPart(gain=gain, eps=1e-3), True)):
        module = part.build(16)
        for name, p in module.named_parameters():
            torch.nn.init.normal_(p) if name == "weight" else torch.nn.init.constant_(p, 0.3)
        y = x - x.mean(-1, keepdim=True) if centred else x
        y = y / (y.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        weight = 1 if module.weight is None else module.weight + (gain == "one_plus")
        wanted = y * weight + (0.3 if centred else 0)
        torch.testing.assert_close(module(x), wanted)
        low = module(x.bfloat16())
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), wanted, atol=0.05, rtol=0.02)


def test_differential_attention_with_lambda_zero_is_half_of_plain() -> None:
    """With lambda = 0 the second map is gone: what is left is softmax attention of the first half of the heads, normalised."""
    module = decoder_of("differential").blocks[0].attention
    with torch.no_grad():
        # exp(a1 b1) - exp(a2 b2) = -lambda_0
        module.lambdas.zero_()
        module.lambdas[2:, 0] = math.sqrt(math.log(1 + module.lambda_0))
    decoder = decoder_of("differential")
    _, sequence = decoder._run(torch.zeros(1, 5, dtype=torch.long), None, None, None)
    x = noise(1, 5, 32)
    q, k, v = (layer(x).view(1, 5, 4, 8).transpose(1, 2) for layer in (module.q, module.k, module.v))
    q, k = sequence.encodings[0].rotate(q), sequence.encodings[0].rotate(k)
    pair = torch.cat((v[:, :2], v[:, 2:]), -1)
    first = F.scaled_dot_product_attention(q[:, :2], k[:, :2], pair, is_causal=True)
    wanted = (1 - module.lambda_0) * F.rms_norm(first, (16,), eps=1e-5)
    torch.testing.assert_close(
        module(x, sequence.at(0)), module.o(wanted.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4
    )
