from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    CAN_TRITON,
    DEVICE,
    IMPLS,
    Bug,
    Case,
    check,
    check_all_bugs_are_caught,
    module,
    needs_gpu,
    rand,
)
from torch.utils.flop_counter import FlopCounterMode

from slm_kernels import linear_cross_entropy, use
from slm_kernels.linear_cross_entropy import chunk_rows, reference

ROOT = Path(__file__).resolve().parent.parent.parent


def problem(rows: int = 37, dim: int = 16, vocab: int = 101, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=g, dtype=torch.float64).requires_grad_()
    w = torch.randn(vocab, dim, generator=g, dtype=torch.float64).requires_grad_()
    y = torch.randint(vocab, (rows,), generator=g)
    y[::5] = -100
    y[1], y[2] = 0, vocab - 1
    return x, w, y


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk_bytes", [1, 20 * 4 * 101, 1 << 30])
def test_value_and_gradients_match_the_reference(z_loss: float, chunk_bytes: int) -> None:
    x, w, y = problem()
    ours, nll = linear_cross_entropy(x.float(), w.float(), y, z_loss=z_loss, chunk_bytes=chunk_bytes)
    wanted, wanted_nll = reference(x, w, y, z_loss=z_loss)
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(nll.double(), wanted_nll.double(), rtol=1e-5, atol=1e-4)
    gx, gw = torch.autograd.grad(ours * 0.37, [x, w])
    wx, ww = torch.autograd.grad(wanted * 0.37, [x, w])
    torch.testing.assert_close(gx, wx, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gw, ww, rtol=1e-4, atol=1e-5)


def test_all_ignored_is_zero_with_zero_gradients() -> None:
    x, w, y = problem()
    loss, _ = linear_cross_entropy(x.float(), w.float(), torch.full_like(y, -100))
    assert loss == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(loss, [x, w]))


def test_extreme_logits_stay_finite() -> None:
    x, w, y = problem()
    loss, _ = linear_cross_entropy((x * 1e4).float(), w.float(), y)
    assert torch.isfinite(loss)


def test_inputs_are_not_modified_and_no_grad_agrees() -> None:
    x, w, y = problem()
    before = [t.clone() for t in (x, w, y)]
    a, _ = linear_cross_entropy(x.float(), w.float(), y)
    with torch.no_grad():
        b, _ = linear_cross_entropy(x.float(), w.float(), y)
    assert a == b
    assert all(torch.equal(t, s) for t, s in zip((x, w, y), before, strict=True))


def test_without_gradients_only_the_logits_are_multiplied() -> None:
    """A third of the work: evaluation has parameters that want gradients, but doesn't want them itself."""
    x, w, y = problem()
    for grad, products in ((True, 3), (False, 1)):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            linear_cross_entropy(x, w, y)
        assert counter.get_total_flops() == products * 2 * 37 * 16 * 101


def test_autocast_is_as_exact_as_torchs_own_bf16() -> None:
    x, w, y = problem(rows=256, dim=64)
    exact = reference(x, w, y)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = linear_cross_entropy(x.float(), w.float(), y)
        theirs, _ = reference(x.float(), w.float(), y)
    assert abs(ours - exact) <= 2 * abs(theirs - exact) + 1e-3 * abs(exact)
    assert torch.autograd.grad(ours, w)[0].dtype == torch.float64


HEADS = {
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.3},
    "softcap": {"softcap": 2.0},
    "padding": {"valid": 90},
    "all": {"bias": True, "logit_scale": 0.7, "softcap": 3.0, "valid": 77},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
def test_heads_match_the_reference_in_value_and_every_gradient(name: str, chunk_bytes: int) -> None:
    x, w, y = problem()
    options = dict(HEADS[name])
    b = (
        torch.randn(101, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
        if options.pop("bias", False)
        else None
    )
    y[y >= options.get("valid", 101)] = 3
    ours, _ = linear_cross_entropy(x, w, y, z_loss=1e-2, bias=b, chunk_bytes=chunk_bytes, **options)
    wanted, _ = reference(x, w, y, z_loss=1e-2, bias=b, **options)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    inputs = [x, w] if b is None else [x, w, b]
    for got, expected in zip(
        torch.autograd.grad(ours * 0.37, inputs), torch.autograd.grad(wanted * 0.37, inputs), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_softcap_tames_extreme_logits() -> None:
    x, w, y = problem()
    loss, _ = linear_cross_entropy((x * 1e4).float(), w.float(), y, softcap=5.0)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [x, w]))


# Every implementation, every reduction, against fp64.

OPTIONS = {
    "plain": {},
    "z": {"z_loss": 0.02},
    "all": {"logit_scale": 0.7, "softcap": 3.0, "valid": 90, "z_loss": 0.01, "label_smoothing": 0.1},
}


def case(rows: int = 23, *, impl: str = "torch", bias: bool = True, chunk_bytes: int | None = 1, **options) -> Case:
    """A chunk of 16 rows by default, so that 23 rows make an uneven second one."""
    y = torch.randint(options.get("valid", 101), (rows,), generator=torch.Generator().manual_seed(1))
    y[::5], y[1:2], y[2:3] = -100, 0, options.get("valid", 101) - 1
    y = y.to(DEVICE)
    inputs = [rand(rows, 16), rand(101, 16, seed=1), rand(101, seed=2) if bias else None]

    def ours(x, w, b):
        return linear_cross_entropy(x, w, y, bias=b, impl=impl, chunk_bytes=chunk_bytes, **options)

    return Case(ours, lambda x, w, b: reference(x, w, y, bias=b, **options), inputs, f"linear_cross_entropy {options}")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("options", OPTIONS)
def test_matches_fp64(options, reduction, impl) -> None:
    check(case(impl=impl, reduction=reduction, **OPTIONS[options]))
    check(case(impl=impl, reduction=reduction, bias=False, chunk_bytes=None, **OPTIONS[options]))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("rows", [0, 1, 16, 17])
def test_any_number_of_rows(rows, impl) -> None:
    for reduction in ("sum", "mean", "none"):
        check(case(rows, impl=impl, reduction=reduction))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_under_torch_compile_without_a_graph_break(reduction, impl) -> None:
    torch._dynamo.reset()
    made = case(impl=impl, reduction=reduction, **OPTIONS["all"])
    made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
    check(made)


@given(
    rows=st.integers(0, 40),
    vocab=st.integers(1, 70),
    dim=st.integers(1, 9),
    chunk=st.integers(1, 4000),
    z_loss=st.sampled_from([0.0, 0.1]),
    softcap=st.sampled_from([None, 2.0]),
    smoothing=st.sampled_from([0.0, 0.3]),
    reduction=st.sampled_from(["sum", "mean", "none"]),
    ignored=st.floats(0, 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(rows, vocab, dim, chunk, z_loss, softcap, smoothing, reduction, ignored, data) -> None:
    valid = data.draw(st.none() | st.integers(1, vocab))
    g = torch.Generator().manual_seed(rows * 100 + vocab)
    x, w = rand(rows, dim).requires_grad_(), rand(vocab, dim, seed=1).requires_grad_()
    y = (
        torch.randint(valid or vocab, (rows,), generator=g)
        .where(torch.rand(rows, generator=g) >= ignored, -100)
        .to(DEVICE)
    )
    options = {
        "z_loss": z_loss,
        "softcap": softcap,
        "label_smoothing": smoothing,
        "valid": valid,
        "reduction": reduction,
    }
    ours = linear_cross_entropy(x, w, y, chunk_bytes=chunk, **options)
    theirs = reference(x, w, y, **options)
    upstream = rand(*theirs[0].shape, seed=3)
    for a, b in zip(
        (*ours, *torch.autograd.grad(ours[0], [x, w], upstream)),
        (*theirs, *torch.autograd.grad(theirs[0], [x, w], upstream)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLS)
def test_aux_tells_what_the_loss_knows(impl) -> None:
    x, w, y = (t.detach().float() if t.is_floating_point() else t for t in problem())
    x, w, y = x.to(DEVICE), w.to(DEVICE), y.to(DEVICE)
    _, nll, aux = linear_cross_entropy(x, w, y, aux=True, impl=impl)
    logits, counted = x @ w.T, y != -100
    torch.testing.assert_close(aux.lse, logits.logsumexp(-1) * counted, rtol=1e-5, atol=1e-5)
    assert torch.equal(aux.correct.bool(), (logits.argmax(-1) == y) & counted)
    assert aux.count == counted.sum()
    assert not any(t.requires_grad for t in (nll, aux.lse, aux.correct))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradients_that_nobody_wants_cost_nothing(reduction, impl) -> None:
    """A frozen head, or hidden states that are data: two products fewer or one."""
    for frozen, products in (("x", 2), ("w", 2), ("xw", 1)):
        made = case(impl=impl, bias=False, reduction=reduction, chunk_bytes=None)
        x, w = (t.float().requires_grad_(n not in frozen) for n, t in zip("xw", made.inputs[:2], strict=True))
        with FlopCounterMode(display=False) as counter:
            loss = made.ours(x, w, None)[0]
            wanted = [t for t in (x, w) if t.requires_grad]
            if wanted:
                torch.autograd.grad(loss.sum(), wanted)
        again = reduction == "none" and bool(wanted)  # the backward pass computes the logits once more
        if impl == "triton" and reduction == "sum" and not wanted:
            products = 0  # `linear_lse` multiplies in its kernel, where nobody counts
        assert counter.get_total_flops() == (products + again) * 2 * 23 * 16 * 101


def test_backward_twice_gives_the_same() -> None:
    x, w, y = problem()
    loss, _ = linear_cross_entropy(x, w, y)
    first = torch.autograd.grad(loss, [x, w], retain_graph=True)
    kept = [t.clone() for t in first]
    second = torch.autograd.grad(2 * loss, [x, w])
    for a, b, c in zip(first, kept, second, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(2 * a, c)


def test_a_second_derivative_is_refused() -> None:
    x, w, y = problem()
    (g,) = torch.autograd.grad(linear_cross_entropy(x, w, y)[0] * 2, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad|second"):
        torch.autograd.grad(g.sum(), x)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x_ND": torch.ones(3, 4)}, r"x must be \(N, D\)"),
        ({"targets_N": torch.zeros(2, dtype=torch.int64)}, "one per row of x"),
        ({"bias": torch.ones(3)}, "one per row of weight"),
        ({"valid": 8}, "between 1 and the 7 rows"),
        ({"valid": 0}, "between 1 and the 7 rows"),
        ({"reduction": "max"}, "not one of sum, mean, none"),
        ({"impl": "cuda"}, "not one of auto"),
    ],
)
def test_what_is_refused(change, match) -> None:
    good = {"x_ND": torch.ones(3, 5), "weight_VD": torch.ones(7, 5), "targets_N": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=match):
        linear_cross_entropy(**good | change)


@given(
    N=st.integers(0, 10**6),
    row=st.integers(1, 10**7),
    chunk=st.none() | st.integers(1, 10**9),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_chunks_fit_their_budget(N, row, chunk, device) -> None:
    rows = chunk_rows(N, row, chunk, device)
    assert rows >= 1
    assert rows <= max(1, N) or rows % 16 == 0
    if chunk is not None:
        assert rows * row <= max(chunk, 16 * row)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux tells it")
def test_time_and_memory_on_a_cpu() -> None:
    """The measurement of tests/kernels/measure_head.py at a smaller size."""
    sys.path.insert(0, str(ROOT / "tests" / "kernels"))
    try:
        from measure_head import compare
    finally:
        sys.path.pop(0)
    ratio = compare(2048, 128, 49152, repeats=1)["ratio"]
    assert ratio["peak_bytes"] <= 0.25
    assert min(ratio["seconds"], ratio["cpu_seconds"]) <= 1.15


HOME = "linear_cross_entropy"
CASES = [case(z_loss=0.02), case(reduction="none", z_loss=0.02), case(logit_scale=0.7)]
BUGS = [
    Bug("_sum_backward", "(saved * upstream.to(saved.dtype))", "(saved * 1)"),
    Bug("_sum_backward", "upstream.item() == 1", "upstream.item() != 1"),
    Bug("_row_backward_launch", "upstream[chunk.block]", "None", case=1),
    Bug("_row_backward_launch", "upstream[chunk.block]", "upstream[: chunk.x_CD.shape[0]]", case=1),
]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    home = module(HOME)
    for function, name, launch in (
        (home._summed, "_sum_backward", None),
        (home._per_row, "_row_backward", "_row_backward_launch"),
    ):

        def backward(ctx, *grads, name=name, launch=launch):
            return getattr(home, name)(launch and getattr(home, launch), ctx, *grads)

        monkeypatch.setattr(function.function, "backward", staticmethod(backward))
    check_all_bugs_are_caught(monkeypatch, HOME, bug, CASES)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("old", "new", "case"),
    [
        ("g_CV.mT, chunk.x_CD", "-g_CV.mT, chunk.x_CD", 0),
        ("self.dx_ND[chunk.block] = g_CV @ w_VD", "self.dx_ND[chunk.block] = -(g_CV @ w_VD)", 0),
        ("/ scale", "", 2),
        ("self.db_V +=", "self.db_V =", 0),
    ],
)
def test_a_planted_bug_in_the_sums_is_caught(old, new, case, monkeypatch) -> None:
    import __future__

    import inspect
    import textwrap

    home = module(HOME)
    source = textwrap.dedent(inspect.getsource(home._Grads.add))
    assert source.count(old) == 1
    found: dict = {}
    exec(
        compile(source.replace(old, new), "<bug>", "exec", flags=__future__.annotations.compiler_flag),
        home.__dict__,
        found,
    )
    check(CASES[case])
    monkeypatch.setattr(home._Grads, "add", found["add"])
    with pytest.raises(AssertionError, match="error"):
        check(CASES[case])


# On a GPU.


@needs_gpu
@pytest.mark.parametrize("impl", IMPLS)
def test_the_host_never_waits(impl) -> None:
    x, w = (
        torch.randn(4096, 64, device="cuda", requires_grad=True),
        torch.randn(1000, 64, device="cuda", requires_grad=True),
    )
    y = torch.randint(1000, (4096,), device="cuda")

    def step() -> None:
        loss, _ = linear_cross_entropy(x, w, y, reduction="mean", impl=impl, chunk_bytes=1 << 20)
        loss.backward()

    step()  # compiles, and tries what the device can do
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_bf16_on_a_gpu_is_as_exact_as_torchs_and_repeats_itself_in_little_memory() -> None:
    N, D, V = 8192, 576, 49152
    x, w = (rand(*shape, scale=s).bfloat16().requires_grad_() for shape, s in (((N, D), 1.0), ((V, D), D**-0.5)))
    y = torch.randint(V, (N,), device="cuda")
    found = []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss, _ = linear_cross_entropy(x, w, y, z_loss=1e-4, impl="triton")
        found.append([loss, *torch.autograd.grad(loss, [x, w])])
        assert torch.cuda.max_memory_allocated() - before < (700 << 20) + 3 * 4 * V * D
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    few = slice(0, 512)  # fp64 of all rows would not fit
    exact = [
        t.detach()[few].double().requires_grad_() if t is x else t.detach().double().requires_grad_() for t in (x, w)
    ]
    wanted = torch.autograd.grad(reference(*exact, y[few], z_loss=1e-4)[0], exact)
    errors = {}
    for name, call in (("ours", linear_cross_entropy), ("torch", reference)):
        leaves = [x.detach()[few].requires_grad_(), w.detach().requires_grad_()]
        with use("triton"):
            grads = torch.autograd.grad(call(*leaves, y[few], z_loss=1e-4)[0], leaves)
        errors[name] = [float((g.double() - e).norm() / e.norm()) for g, e in zip(grads, wanted, strict=True)]
    assert all(a <= 2 * b + 1e-3 for a, b in zip(errors["ours"], errors["torch"], strict=True)), errors


@pytest.mark.skipif(not CAN_TRITON, reason="needs Triton")
@pytest.mark.usefixtures("poisoned")
def test_bf16() -> None:
    check(case(impl="triton"), torch.bfloat16)
