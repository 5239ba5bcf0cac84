from __future__ import annotations

import pytest
import torch
from kernel_checks import (
    DEVICE,
    GPU,
    IMPLS,
    Bug,
    Case,
    check,
    check_all_bugs_are_caught,
    module,
    needs_triton,
    rand,
)

from slm_kernels import attention

home = module("attention")
pytestmark = pytest.mark.usefixtures("poisoned")
ALL = {"window": 7, "softcap": 2.0, "sinks": True, "slopes": True, "docs": True}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch) -> None:
    """Several blocks in little time."""
    if not GPU:
        monkeypatch.setattr(home, "block_size", lambda K, V: 16)


def case(
    B: int = 1,
    H: int = 2,
    G: int = 1,
    T: int = 37,
    K: int = 6,
    V: int = 6,
    *,
    impl: str = "triton",
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    slopes: bool = False,
    docs: bool = False,
) -> Case:
    doc = (torch.arange(T, device=DEVICE) // 9).expand(B, T) + torch.arange(B, device=DEVICE)[:, None] if docs else None
    fall = 0.1 * (1 + torch.arange(H, device=DEVICE)) if slopes else None
    options = {"scale": 0.7, "window": window, "softcap": softcap}

    def ours(q, k, v, sinks):
        return attention(q, k, v, sinks_H=sinks, slopes_H=fall, docs_BT=doc, impl=impl, **options)

    def theirs(q, k, v, sinks):
        return home.reference(q, k, v, sinks, fall, doc, **options)

    inputs = [rand(B, H, T, K), rand(B, G, T, K, seed=1), rand(B, G, T, V, seed=2), rand(H, seed=3) if sinks else None]
    return Case(ours, theirs, inputs, "attention")


OPTIONS = {
    "plain": {},
    "window": {"window": 5},
    "cap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "slopes": {"slopes": True},
    "documents": {"docs": True},
    "all": ALL,
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, impl) -> None:
    check(case(impl=impl, **OPTIONS[options]), slack=3)


@needs_triton
@pytest.mark.parametrize(
    "shape",
    [
        {"T": 1},
        {"T": 16},
        {"T": 17, "B": 2},
        {"H": 4, "G": 2},
        {"H": 3, "G": 3},
        {"K": 16, "V": 32},
        {"K": 1, "V": 1},
        {"K": 20, "V": 5},
    ],
    ids=str,
)
def test_shapes(shape) -> None:
    check(case(**shape, sinks=True), slack=3)


@needs_triton
def test_views_are_followed() -> None:
    """(B, T, H, K) seen as (B, H, T, K), as projections give it."""
    made = case(B=2)
    made.inputs = [made.inputs[0].transpose(1, 2).contiguous(), *made.inputs[1:]]
    ours, theirs = made.ours, made.reference
    check(
        Case(lambda q, *a: ours(q.mT.mT.transpose(1, 2), *a), lambda q, *a: theirs(q.transpose(1, 2), *a), made.inputs),
        slack=3,
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing(impl) -> None:
    q, k = torch.empty(1, 2, 0, 4, device=DEVICE, requires_grad=True), torch.empty(1, 1, 0, 4, device=DEVICE)
    out = attention(q, k, k, impl=impl)
    assert torch.autograd.grad(out.sum(), q)[0].shape == out.shape == q.shape


@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_sdpa(impl) -> None:
    q, k, v = (rand(2, h, 20, 8, seed=h).float() for h in (4, 2, 3))
    v = v[:, :2]
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attention(q, k, v, impl=impl), wanted, rtol=1e-4, atol=1e-5)


@needs_triton
def test_differential_attention_is_two_maps_subtracted() -> None:
    """softmax(q1 k1) v - lambda softmax(q2 k2) v, values twice as wide as keys."""
    q, k, v = rand(1, 4, 21, 8), rand(1, 2, 21, 8, seed=1), rand(1, 1, 21, 16, seed=2)

    def differential(call):
        def run(q, k, v):
            first, second = call(q, k, v.expand(1, 2, 21, 16)).chunk(2, 1)
            return first - 0.3 * second

        return run

    check(
        Case(
            differential(lambda *a: attention(*a, impl="triton")),
            differential(lambda *a: home.reference(*a, scale=8**-0.5)),
            [q, k, v],
        ),
        slack=3,
    )


@needs_triton
def test_a_sink_takes_what_it_scores() -> None:
    v = torch.ones(1, 1, 5, 4, device=DEVICE)
    zero = torch.zeros(1, 1, 5, 4, device=DEVICE)
    out = attention(zero, zero, v, sinks_H=torch.zeros(1, device=DEVICE), impl="triton")
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([1 / 2, 2 / 3, 3 / 4, 4 / 5, 5 / 6], device=DEVICE))


@needs_triton
def test_large_scores_stay_finite() -> None:
    q, k, v = (rand(1, 1, 20, 4, seed=i).float().requires_grad_() for i in range(3))
    out = attention(q * 1e4, k * 10, v, impl="triton")
    assert all(torch.isfinite(t).all() for t in (out, *torch.autograd.grad(out.sum(), [q, k, v])))


@needs_triton
def test_under_torch_compile_without_a_graph_break() -> None:
    made = case(T=18, **ALL)
    made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
    check(made, slack=3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k_BGTK": torch.ones(1, 2, 4, 8)}, "q, k and v must be"),
        ({"q_BHTK": torch.ones(1, 3, 5, 8)}, "can't serve 3"),
        ({"sinks_H": torch.ones(2)}, "sinks must be"),
        ({"docs_BT": torch.ones(2, 5)}, "docs must be"),
    ],
)
def test_what_is_refused(change, match) -> None:
    good = {"q_BHTK": torch.ones(1, 4, 5, 8), "k_BGTK": torch.ones(1, 2, 5, 8), "v_BGTV": torch.ones(1, 2, 5, 8)}
    with pytest.raises(ValueError, match=match):
        attention(**good | change)


CASES = [case(T=33, **ALL), case(H=4, G=2, T=18)]
BUGS = [
    Bug("_keys_kernel", "p * (dp - d[:, None]) * slope_z", "p * dp * slope_z"),
    Bug("_keys_kernel", "p * (dp - d[:, None]) * slope_z", "p * (dp - d[:, None])"),
    Bug("_keys_kernel", "dk * scale", "dk"),
    Bug("_keys_kernel", "i_h = i_g * (H // G) + member", "i_h = i_g * (H // G)", case=1),
    Bug("_keys_kernel", "first + BLOCK - 1 + window", "first + window - 1"),
    Bug("_queries_kernel", "(dp - d[:, None]) * slope_z", "(dp - d[:, None])"),
    Bug("_queries_kernel", "dq * scale", "dq"),
    Bug("_queries_kernel", "first - window + 1", "first - window + BLOCK"),
    Bug("_scores", "4 * half * (1 - half)", "half * (1 - half)"),
    Bug("_scores", "distance < window", "distance <= window"),
    Bug("_forward_kernel", "tl.exp(sink - higher)", "0.0"),
    Bug("_forward_kernel", "o = o * tl.exp(top - higher)[:, None]", "pass"),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    check_all_bugs_are_caught(monkeypatch, "attention", bug, CASES)


@needs_triton
@pytest.mark.parametrize(("old", "new"), [("-((sinks", "((sinks"), (".exp() * d)", ".exp())")])
def test_a_planted_bug_in_the_sinks_gradient_is_caught(old, new, monkeypatch) -> None:
    monkeypatch.setattr(
        home._function.function,
        "backward",
        staticmethod(lambda ctx, *g: home._backward(home._launch_backward, ctx, *g)),
    )
    check_all_bugs_are_caught(monkeypatch, "attention", Bug("_backward", old, new), CASES)


@needs_triton
def test_bf16() -> None:
    check(case(T=18), torch.bfloat16)
