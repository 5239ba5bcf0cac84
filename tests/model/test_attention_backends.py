"""Every attention backend against fp64, what each refuses, and which one is taken."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from slm.config.errors import ConfigError
from slm.model.attention import backends, flash, flex, routing, sdpa
from slm.model.attention.backends import BACKENDS, Choice, Request, Scores, attend, choose, supported
from slm.model.config import Model
from slm.model.sequence import Mask
from tests.model.variants import decoder_of, ids, model_of

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
T = 37
DOCS = torch.tensor([[0] * 9 + [1] * 28, [0] * 36 + [1]], device=DEVICE)
WISHES: dict[str, tuple[dict[str, Any], Tensor | None]] = {
    "causal": ({}, None),
    "documents": ({}, DOCS),
    "window": ({"window": 5}, None),
    "window and documents": ({"window": 5}, DOCS),
    "softcap": ({"softcap": 2.0}, DOCS),
    "slopes": ({"slopes": True}, DOCS),
    "sinks": ({"sinks": True}, None),
    "all": ({"window": 7, "softcap": 2.0, "slopes": True, "sinks": True}, DOCS),
}
SHAPES = [(3, 3, 64, 64), (6, 2, 24, 24), (4, 1, 16, 32)]
"""Query heads, key/value heads, width, width of values."""


def given(shape: tuple[int, int, int, int], wish: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Queries, keys, values, mask and scores."""
    H, G, K, V = shape
    draw = torch.Generator().manual_seed(0)
    options, docs = WISHES[wish]
    slopes = torch.rand(H, generator=draw).to(DEVICE, dtype) if options.get("slopes") else None
    sinks = torch.randn(H, generator=draw).to(DEVICE, dtype) if options.get("sinks") else None
    q, k, v = (
        torch.randn(2, n, T, w, generator=draw, dtype=torch.float64).to(DEVICE, dtype)
        for n, w in ((H, K), (G, K), (G, V))
    )
    return q, k, v, Mask(T, DEVICE, docs), Scores(K**-0.5, options.get("window"), options.get("softcap"), slopes, sinks)


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """The definition, in the inputs' precision."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = q @ k.mT * scores.scale
    at = torch.arange(T, device=q.device)
    distance = at[:, None] - at
    seen = (distance >= 0) & (distance < (scores.window or T))
    s = s if scores.softcap is None else scores.softcap * (s / scores.softcap).tanh()
    s = s if scores.slopes_H is None else s - scores.slopes_H[:, None, None] * distance
    if mask.docs_BT is not None:
        seen = (seen & (mask.docs_BT[:, :, None] == mask.docs_BT[:, None, :]))[:, None]
    s = s.masked_fill(~seen, -torch.inf)
    if scores.sinks_H is not None:
        s = torch.cat((s, scores.sinks_H[:, None, None].expand(*s.shape[:3], 1)), -1)
    return s.softmax(-1)[..., :T] @ v


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_agrees_with_fp64(name: str, shape: tuple[int, int, int, int], wish: str) -> None:
    dtype = torch.bfloat16 if GPU else torch.float32
    q, k, v, mask, scores = given(shape, wish, dtype)
    able, _ = supported(name, Request.of(q.requires_grad_(), k, v, mask, scores))
    q = q.detach()
    if not able and not supported(name, Request.of(q, k, v, mask, scores))[0]:
        with pytest.raises(ConfigError, match=f"impl.attention={name} can't do"):
            attend(q, k, v, mask, scores, backend=name)
        return
    wide = replace(scores, **{n: t.double() for n in ("slopes_H", "sinks_H") if (t := getattr(scores, n)) is not None})
    exact = [t.double().requires_grad_(able) for t in (q, k, v)]
    wanted = by_hand(*exact, mask, wide)
    ours = [t.detach().requires_grad_(able) for t in (q, k, v)]
    found = attend(*ours, mask, scores, backend=name)
    allowed = {"atol": 3e-2, "rtol": 3e-2} if GPU else {"atol": 2e-6, "rtol": 1e-5}
    torch.testing.assert_close(found.double(), wanted, **allowed)
    if able:
        back = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
        for a, e in zip(
            torch.autograd.grad(found, ours, back.to(dtype)), torch.autograd.grad(wanted, exact, back), strict=True
        ):
            torch.testing.assert_close(a.double(), e, **{k: 3 * x for k, x in allowed.items()})


def test_flex_on_a_cpu_says_that_it_has_no_gradient() -> None:
    asked = Request(CPU, torch.float32, 8, 8, 16, 16, documents=True)
    assert supported("flex", asked) == (False, "FlexAttention has no gradient on a CPU")
    assert supported("flex", asked._replace(gradient=False)) == (True, "")


@pytest.mark.parametrize("name", ["window", "alibi", "softcap", "sinks"])
def test_a_whole_model_by_flex(name: str) -> None:
    with torch.no_grad():
        wanted = decoder_of(name, "matmul")(ids(), docs_BT=DOCS[:, :24].cpu())
        found = decoder_of(name, "flex")(ids(), docs_BT=DOCS[:, :24].cpu())
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 1, 5, 130, 1000])
@pytest.mark.parametrize(("length", "past"), [(1, 0), (40, 0), (128, 0), (300, 0), (512, 0), (7, 200), (256, 131)])
@pytest.mark.parametrize("documents", ["none", "one", "few", "many"])
def test_blocks_are_those_that_asking_every_pair_gives(
    documents: str, length: int, past: int, window: int | None
) -> None:
    if past and documents != "none":
        pytest.skip("documents and a cache can't be combined")
    often = {"none": 0.0, "one": 0.0, "few": 0.01, "many": 0.3}[documents]
    generator = torch.Generator().manual_seed(length)
    docs = (torch.rand(3, length, generator=generator) < often).cumsum(1)
    mask, keys = Mask(length, CPU, None if documents == "none" else docs, past), length + past
    found = flex.block_mask(mask, keys, window)
    wanted = create_block_mask(found.mask_mod, None if documents == "none" else 3, None, length, keys, device="cpu")
    assert found.shape == wanted.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    for name in ("kv_indices", "full_kv_indices", "q_indices", "full_q_indices"):
        assert _used(found, name) == _used(wanted, name), name
    pairs = (
        create_mask(found.mask_mod, 3, None, length, keys, device="cpu")
        if documents != "none"
        else create_mask(found.mask_mod, None, None, length, keys, device="cpu")
    )
    allowed = mask.allowed(keys, window)
    assert torch.equal(pairs, torch.ones_like(pairs) if allowed is None else allowed)


def _used(mask: BlockMask, name: str) -> list[list[int]]:
    """The numbers of blocks that count; what stands behind them in each list doesn't."""
    counts = getattr(mask, name.replace("indices", "num_blocks")).flatten().tolist()
    return [row[:n] for row, n in zip(getattr(mask, name).flatten(0, 2).tolist(), counts, strict=True)]


def test_masks_for_flex_are_made_once_and_a_graph_finds_them() -> None:
    model = decoder_of("window", "flex")
    mask = Mask(24, CPU, DOCS[:, :24].cpu())
    with torch.no_grad():
        routing.prepare("flex", model.config, mask, torch.float32)
        [made] = [m for key, m in mask._made.items() if key[0] == "blocks"]
        assert flex.block_mask(mask, 24, 5) is made

        def call(q: Tensor) -> Tensor:
            return attend(q, q, q, mask, Scores(0.3, 5), backend="flex")

        q = torch.randn(2, 2, 24, 16)
        torch._dynamo.reset()
        compiled = torch.compile(call, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(q), attend(q, q, q, mask, Scores(0.3, 5), backend="matmul"))


# ---- packages that aren't here: what they are called with -----------------------------------------------------


def flash_attn_func(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None):  # type: ignore[no-untyped-def]
    assert causal
    return _rows(q, k, v, None, softmax_scale, window_size, softcap, alibi_slopes)


def flash_attn_varlen_func(  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False, window_size=(-1, -1),
    softcap=0.0, alibi_slopes=None,
):  # fmt: skip
    assert causal
    assert cu_seqlens_q.dtype == torch.int32
    assert (cu_seqlens_q.diff() <= max_seqlen_q).all()
    options = softmax_scale, window_size, softcap, alibi_slopes
    return _rows(q[None], k[None], v[None], cu_seqlens_k, *options)[0], "log-sums"


def varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return _rows(q[None], k[None], v[None], cu_seq_k, scale, window_size, 0.0, None)[0]


def _rows(q, k, v, borders, scale, window, softcap, slopes) -> Tensor:  # type: ignore[no-untyped-def]
    """What the packages do with one row of documents, (B, T, heads, K), by this package's plain backend."""
    docs = None if borders is None else torch.bucketize(torch.arange(q.shape[1]), borders[1:].long(), right=True)[None]
    size = None if window[0] < 0 else window[0] + 1
    assert window[1] in (0, -1)
    scores = Scores(scale, size, softcap or None, slopes)
    args = (t.transpose(1, 2).float() for t in (q, k, v))
    out = attend(*args, Mask(q.shape[1], CPU, docs), scores, backend="matmul")
    return out.transpose(1, 2).to(q.dtype)


@pytest.fixture
def _packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flash-attn and torch's function, played by the functions above, as if a CPU were their device."""
    module = types.ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace(name="flash_attn")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash, "torchs", lambda: (varlen_attn, frozenset(("scale", "window_size", "enable_gqa"))))
    flash.package.cache_clear()
    for name in ("flash", "varlen"):
        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], missing=lambda device: ""))
    yield
    flash.package.cache_clear()


@pytest.mark.skipif(GPU, reason="the packages themselves may be here")
@pytest.mark.usefixtures("_packages")
@pytest.mark.parametrize("wish", ["causal", "documents", "window", "window and documents", "softcap", "slopes"])
@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_packages_are_called_as_they_expect(name: str, wish: str) -> None:
    q, k, v, mask, scores = given((6, 2, 24, 24), wish, torch.bfloat16)
    if name == "varlen" and wish in ("softcap", "slopes"):
        with pytest.raises(ConfigError, match=f"it has no {wish}"):
            attend(q, k, v, mask, scores, backend=name)
        return
    found = attend(q, k, v, mask, scores, backend=name)
    wanted = attend(*(t.float() for t in (q, k, v)), mask, scores, backend="matmul")
    torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)


def test_borders_of_documents() -> None:
    docs = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 2, 3]])
    assert flash.borders_of(Mask(3, CPU, docs)).tolist() == [0, 2, 3, 6, 7, 8, 9]
    assert flash.borders_of(Mask(3, CPU), rows=2).tolist() == [0, 3, 6]


# ---- which one is taken ----------------------------------------------------------------------------------------

ROW = Request(CUDA, torch.bfloat16, 2048, 2048, 64, 64)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper GPU with Triton, torch's varlen and no flash-attn, as far as choices go."""
    for module in (sdpa, flash):
        monkeypatch.setattr(module, "hopper", lambda device: True)
    for name, why in (("flex", ""), ("varlen", ""), ("flash", "flash-attn isn't installed")):
        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], missing=lambda device, why=why: why))
    monkeypatch.setattr(flash, "torchs", lambda: (varlen_attn, frozenset(("scale", "window_size"))))


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("asked", "backend", "reason"),
    [
        (ROW, "sdpa", "dense and causal: cuDNN first"),
        (ROW._replace(documents=True), "flex", "skips what other documents hide"),
        (ROW._replace(documents=True, width=8, value_width=8), "varlen", "not flex: its kernels need heads of 16"),
        (ROW._replace(window=True), "varlen", "not flash: flash-attn isn't installed"),
        (
            ROW._replace(window=True, dtype=torch.float32),
            "flex",
            "not varlen: it computes in fp16 and bf16, not in float32",
        ),
        (ROW._replace(softcap=True), "flex", "with caps"),
        (ROW._replace(sinks=True, width=8), "matmul", "not sdpa: it has no sinks"),
        (ROW._replace(queries=1), "sdpa", "over a cache"),
        (ROW._replace(queries=1, softcap=True), "matmul", "everything"),
        (ROW._replace(device=CPU, keys=512), "matmul", "fastest on a CPU up to 512"),
        (ROW._replace(device=CPU), "sdpa", "fastest on cpu"),
        (ROW._replace(device=CPU, sinks=True), "matmul", "not sdpa: it has no sinks"),
    ],
    ids=str,
)
def test_auto_takes_the_first_that_can(asked: Request, backend: str, reason: str) -> None:
    found = choose("auto", asked)
    assert found.backend == backend
    assert reason in found.reason


@pytest.mark.usefixtures("_gpu")
def test_a_backend_that_was_asked_for_is_never_replaced() -> None:
    assert choose("varlen", ROW) == Choice("varlen", "asked for")
    with pytest.raises(ConfigError, match=r"varlen can't do .* which no compiled or recorded graph can do; use flex"):
        choose("varlen", ROW._replace(documents=True, graph=True))
    with pytest.raises(ConfigError, match="Did you mean 'flex'"):
        choose("flexx", ROW)
    with pytest.raises(ConfigError, match=r"flash can't do .* isn't installed"):
        choose("flash", ROW)


@pytest.mark.usefixtures("_gpu")
def test_a_model_says_which_layers_take_what() -> None:
    model = Model(**{
        "dim": 64, "layers": 4, "vocab": 40, "context": 24, "attention": {"name": "gqa", "heads": 4, "kv_heads": 2},
        "layout": {"name": "pattern", "pattern": "window*3,full", "kinds": {"window": {"attention": {"window": 6}}}},
    })  # fmt: skip
    found = routing.explain("auto", model, CUDA, torch.bfloat16, 24, documents=False)
    assert [(c.backend, layers) for c, layers in found.items()] == [("varlen", [0, 1, 2]), ("sdpa", [3])]
    assert "in layers 0, 1, 2; sdpa (dense and causal: cuDNN first) in layers 3" in routing.told(found)
    with pytest.raises(ConfigError, match=r"impl.attention=sdpa can't do"):
        routing.explain("sdpa", model_of("softcap"), CUDA, torch.bfloat16, 24)


def test_what_parts_tell_is_what_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests that are foreseen are those that come."""
    came: list[Request] = []
    of = Request.of

    def noted(*args: Any) -> Request:
        came.append(of(*args))
        return came[-1]

    monkeypatch.setattr(backends.Request, "of", staticmethod(noted))
    for name in (
        "gqa",
        "window",
        "mqa",
        "sinks",
        "softcap",
        "alibi",
        "mla full rank",
        "differential grouped",
        "differential",
    ):
        came.clear()
        model = decoder_of(name)
        model(ids(), docs_BT=DOCS[:, :24].cpu())
        told = routing.requests(model.config, CPU, torch.float32, 24, documents=True)
        assert [asked for _, _, asked in told] == came, name


def test_on_hopper_cudnn_is_asked_first_and_never_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[Any, bool]] = []
    real = sdpa.sdpa_kernel

    def spied(order: Any, set_priority: bool = False) -> Any:
        orders.append((order, set_priority))
        return real(order, set_priority=set_priority)

    monkeypatch.setattr(sdpa, "sdpa_kernel", spied)
    monkeypatch.setattr(sdpa, "hopper", lambda device: True)
    q = torch.randn(1, 2, 8, 16)
    torch.testing.assert_close(
        sdpa.sdpa(q, q, q, Mask(8, CPU), Scores(0.25)),
        F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.25),
    )
    assert orders == [(sdpa.DENSE, True)]
    assert sdpa.DENSE[0] == sdpa.SDPBackend.CUDNN_ATTENTION
    assert sdpa.SDPBackend.CUDNN_ATTENTION not in sdpa.MASKED
