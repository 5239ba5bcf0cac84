"""Whole modules against their formulas written out with loops: what no other library computes, so no parity test holds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.sequence import Here

from .variants import GQA, decoder_of, ids

CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # fp32: sums in another order


def running(name: str, **changes) -> tuple:
    """A decoder, the sequence that its layers get for two rows of 24 tokens, and what enters a layer."""
    decoder = decoder_of(name, "matmul", **changes)
    _, sequence = decoder._run(ids(), None, None, None)
    sequence.first_values = None
    return decoder, sequence, torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(7))


def attention_by_hand(module, x: Tensor, here: Here, mixed_in: Tensor | None = None) -> Tensor:
    """Query by query and head by head: norms, rotation, growth with log n, scores, softmax, values, gate."""
    part, encoding = module.part, here.encoding
    q, k, v = (layer(x) for layer in (module.q, module.k, module.v))
    if part.clip_qkv is not None:
        q, k, v = (t.clip(-part.clip_qkv, part.clip_qkv) for t in (q, k, v))
    if part.qk_norm == "full":
        q, k = module.q_norm(q), module.k_norm(k)
    q, k, v = (t.unflatten(-1, (-1, module.head_dim)) for t in (q, k, v))
    if part.qk_norm == "each":  # a row of gains for each head, around the same statistics
        q, k = (
            torch.stack([F.layer_norm(t[:, :, h], (8,), n.weight[h], eps=1e-5) for h in range(t.shape[2])], 2)
            for t, n in ((q, module.q_norm), (k, module.k_norm))
        )
    early = part.qk_norm == "head" and not part.qk_norm_after_position
    q, k = (module.q_norm(q), module.k_norm(k)) if early else (q, k)
    q, k = (encoding.rotate(t.transpose(1, 2)).transpose(1, 2) for t in (q, k))
    q, k = (module.q_norm(q), module.k_norm(k)) if part.qk_norm_after_position else (q, k)
    if mixed_in is not None:
        v = module.values.mix[0] * v + module.values.mix[1] * mixed_in
    out = torch.empty_like(q)
    for t in range(24):
        growth = max(1.0, math.log(t + 1) / math.log(part.log_n)) if part.log_n else 1.0
        for h in range(module.heads):
            g = h // (module.heads // module.kv_heads)
            score = torch.einsum("bk,bsk->bs", q[:, t, h], k[:, : t + 1, g]) * growth * (part.scale or 8**-0.5)
            out[:, t, h] = torch.einsum("bs,bsk->bk", score.softmax(-1), v[:, : t + 1, g])
    if part.gate != "none":
        gate = 1 / (1 + (-module.gate(x)).exp())
        out = out * (gate[..., None] if part.gate == "head" else gate.unflatten(-1, (-1, 8)))
    return module.o(out.flatten(2))


OPTIONS = ["gqa", "qk_norm each", "qk_norm full", "qk_norm after position", "clip_qkv", "scale", "gate head", "gate element", "log_n"]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_softmax_attention(name: str) -> None:
    decoder, sequence, x = running(name)
    module = decoder.blocks[0].attention
    torch.testing.assert_close(module(x, sequence.at(0)), attention_by_hand(module, x, sequence.at(0)), **CLOSE)


@torch.no_grad()
def test_values_of_the_first_layer_and_of_the_tokens() -> None:
    decoder, sequence, x = running("value_mix first")
    first, second = (block.attention for block in decoder.blocks)
    own = first.v(x).unflatten(-1, (2, 8))
    here, later = sequence.at(0), sequence.at(1)
    torch.testing.assert_close(first(x, here), attention_by_hand(first, x, here, own), **CLOSE)
    # the first layer hands on its values as projected, before its own mixing
    later.first_values = here.first_values
    torch.testing.assert_close(second(2 * x, later), attention_by_hand(second, 2 * x, later, own), **CLOSE)
    decoder, sequence, x = running("value_mix embedding")
    module = decoder.blocks[1].attention
    learned = module.values.weight[ids()].unflatten(-1, (2, 8))
    torch.testing.assert_close(
        module(x, sequence.at(1)), attention_by_hand(module, x, sequence.at(1), learned), **CLOSE
    )


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["differential", "differential of its own norm"])
@torch.no_grad()
def test_differential_attention(name: str, layer: int) -> None:
    decoder, sequence, x = running(name)
    module, encoding = decoder.blocks[layer].attention, sequence.encodings[layer]
    K = module.head_dim
    q, k, v = (layer(x).unflatten(-1, (4, K)).transpose(1, 2) for layer in (module.q, module.k, module.v))
    q, k = encoding.rotate(q), encoding.rotate(k)
    a1, b1, a2, b2 = module.lambdas
    start = 0.8 - 0.6 * math.exp(-0.3 * layer)
    weight = (a1 @ b1).exp() - (a2 @ b2).exp() + start
    future = torch.ones(24, 24, dtype=torch.bool).triu(1)
    maps = (q @ k.mT / K**0.5).masked_fill(future, -torch.inf).softmax(-1)
    pairs = [(maps[:, i] - weight * maps[:, i + 2]) @ torch.cat((v[:, i], v[:, i + 2]), -1) for i in (0, 1)]
    wanted = module.o(torch.cat([(1 - start) * module.norm(p) for p in pairs], -1))
    torch.testing.assert_close(module(x, sequence.at(layer)), wanted, **CLOSE)


@pytest.mark.parametrize("name", ["mla", "mla of its own norm"])
@torch.no_grad()
def test_latent_attention(name: str) -> None:
    decoder, sequence, x = running(name)
    module, encoding = decoder.blocks[0].attention, sequence.encodings[0]
    nope, rope, width = module.part.nope_dim, module.part.rope_dim, module.part.v_dim
    q = module.q_b(module.q_norm(module.q_a(x))).unflatten(-1, (4, nope + rope)).transpose(1, 2)
    latent, shared = module.kv_a(x).split((8, rope), -1)
    both = module.kv_b(module.kv_norm(latent)).unflatten(-1, (4, nope + width)).transpose(1, 2)
    turned, shared = encoding.rotate(q[..., nope:]), encoding.rotate(shared[:, None])
    scores = q[..., :nope] @ both[..., :nope].mT + turned @ shared.mT
    future = torch.ones(24, 24, dtype=torch.bool).triu(1)
    scale = module.part.scale or (nope + rope) ** -0.5
    weights = (scores * scale).masked_fill(future, -torch.inf).softmax(-1)
    wanted = module.o((weights @ both[..., nope:]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, sequence.at(0)), wanted, **CLOSE)


@torch.no_grad()
def test_the_recurrence_of_griffin() -> None:
    """Step by step, a document after the other; the first entry of each is taken whole."""
    decoder, _, x = running("rglru heads")
    docs = torch.tensor([[0] * 10 + [1] * 14]).expand(2, -1)
    positions = torch.tensor([[*range(10), *range(14)]]).expand(2, -1)
    _, sequence = decoder._run(ids(), positions, docs, None)
    module, h, outputs = decoder.blocks[0].attention, torch.zeros(2, 48), []
    taps, branch = module.conv.weight, module.x(x)
    for t in range(24):
        start = 0 if t < 10 else 10
        u = module.conv.bias + sum(branch[:, t - j] * taps[:, 2 - j] for j in range(3) if t - j >= start)
        gates = []
        for gate in (module.decay_gate, module.input_gate):
            split = u.unflatten(-1, (4, 12))
            gates.append((torch.einsum("bhi,hoi->bho", split, gate.weight) + gate.bias).flatten(1).sigmoid())
        a = (-8 * gates[0] * F.softplus(module.decay)).exp()
        first = t == start
        h = gates[1] * u if first else a * h + (1 - a.square()).sqrt() * gates[1] * u
        outputs.append(module.o(h * F.gelu(module.y(x[:, t]), approximate="tanh")))
    torch.testing.assert_close(module(x, sequence.at(0)), torch.stack(outputs, 1), **CLOSE)


@torch.no_grad()
def test_blocks_with_learned_mixing_and_a_shortcut() -> None:
    decoder, sequence, x = running("parallel with all")
    block, x0 = decoder.blocks[1], decoder.embedding(ids())
    mixed = block.mix[0] * x + block.mix[1] * x0
    y = block.attention_norm(mixed)
    short = F.linear(F.gelu(F.linear(y, block.shortcut.up.weight)), block.shortcut.down.weight)
    wanted = mixed + 0.7 * (block.attention(y, sequence.at(1)) + short + block.ffn(y, sequence.at(1)))
    torch.testing.assert_close(block(x, sequence.at(1))[0], wanted, **CLOSE)


@torch.no_grad()
def test_parallel_blocks_with_two_norms() -> None:
    decoder, sequence, x = running("parallel two norms")
    block = decoder.blocks[1]
    wanted = x + block.attention(block.attention_norm(x), sequence.at(1)) + block.ffn(block.ffn_norm(x), sequence.at(1))
    torch.testing.assert_close(block(x, sequence.at(1))[0], wanted, **CLOSE)


ARRANGED = {
    "gqa": lambda x, f, norms, s: x + s * f(norms[0](x)),
    "post": lambda x, f, norms, s: norms[2](x + s * f(x)),
    "sandwich": lambda x, f, norms, s: x + s * norms[1](f(norms[0](x))),
    "reordered": lambda x, f, norms, s: x + s * norms[1](f(x)),
    "branch_scale": lambda x, f, norms, s: x + 0.5 * f(norms[0](x)),
    "depth_scale": lambda x, f, norms, s: x + 1.4 / math.sqrt(2) * f(norms[0](x)),
}


@pytest.mark.parametrize("name", ARRANGED)
@torch.no_grad()
def test_blocks_one_branch_after_the_other(name: str) -> None:
    decoder, sequence, x = running(name)
    block, wanted = decoder.blocks[1], x
    for branch in ("attention", "ffn"):
        norms = [getattr(block, f"{branch}_{place}") for place in ("norm", "post_norm", "out_norm")]
        module = getattr(block, branch)
        wanted = ARRANGED[name](wanted, lambda y, m=module: m(y, sequence.at(1)), norms, 1.0)
    torch.testing.assert_close(block(x, sequence.at(1))[0], wanted, **CLOSE)


@pytest.mark.parametrize("name", ["series", "series gated"])
@torch.no_grad()
def test_a_series_of_activations(name: str) -> None:
    decoder, sequence, x = running(name)
    module = decoder.blocks[0].ffn
    act, inner = module.act, module.gate(x) if name == "series gated" else module.up(x)
    function = F.silu if name == "series gated" else F.gelu
    total = sum(function(act.scales[i] * inner + act.shifts[i]) for i in range(len(act.scales)))
    wanted = module.down(total * module.up(x) if name == "series gated" else total)
    torch.testing.assert_close(module(x, sequence.at(0)), wanted, **CLOSE)


def test_equal_terms_of_a_series_start_apart() -> None:
    """Else they would get equal gradients and stay equal."""
    assert decoder_of("series").blocks[0].ffn.act.starts["shifts"].unique().numel() == 3


@torch.no_grad()
def test_dynamic_tanh() -> None:
    decoder, _, x = running("dyt alpha", attention=GQA)
    norm = decoder.blocks[0].attention_norm
    torch.testing.assert_close(norm(x), norm.weight * torch.tanh(norm.alpha * x) + norm.bias)


@torch.no_grad()
def test_embeddings() -> None:
    scaled, normed, small = (
        decoder_of(n).embedding for n in ("embedding scaled", "embedding norm and bias", "factorised")
    )
    torch.testing.assert_close(scaled(ids()), 32**0.5 * scaled.weight[ids()])
    torch.testing.assert_close(normed(ids()), F.rms_norm(2 * normed.weight[ids()], (32,), normed.norm.weight, 1e-5))
    torch.testing.assert_close(small(ids()), small.weight[ids()] @ small.project_in.weight.T)


def test_linear_scaling_divides_positions() -> None:
    plain, scaled = (decoder_of(name).positions[0] for name in ("gqa", "rope linear"))
    for got, wanted in zip(
        scaled.tables(torch.arange(24)[None]), plain.tables(torch.arange(24)[None] / 3), strict=True
    ):
        torch.testing.assert_close(got, wanted)
