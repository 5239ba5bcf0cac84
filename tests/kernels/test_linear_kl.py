from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    DEVICE,
    IMPLS,
    Bug,
    Case,
    check,
    check_all_bugs_are_caught,
    module,
    needs_triton,
    rand,
)

from slm_kernels import linear_kl

home = module("linear_kl")
pytestmark = pytest.mark.usefixtures("poisoned")
KINDS = ["forward", "reverse", "jsd"]


def case(N: int = 19, V: int = 41, *, impl: str = "triton", weights: bool = True, **options) -> Case:
    """A chunk of 16 rows, so that 19 make an uneven second one."""
    tx, tw = rand(N, 6, seed=5), rand(V, 6, seed=6)
    w_N = rand(N, seed=7).abs() if weights else None
    if w_N is not None:
        w_N[::3] = 0

    def like(x):
        return tx.to(x.dtype), tw.to(x.dtype), None if w_N is None else w_N.to(x.dtype)

    def ours(x, w):
        tx, tw, w_N = like(x)
        return linear_kl(x, w, tx, tw, weights_N=w_N, chunk_bytes=1, impl=impl, **options)

    return Case(
        ours, lambda x, w: home.reference(x, w, *like(x), **options), [rand(N, 8), rand(V, 8, seed=1)], str(options)
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_fp64(kind, impl) -> None:
    check(case(kind=kind, impl=impl))
    check(case(kind=kind, impl=impl, weights=False, temperature=2.5, beta=0.2, valid=37))


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_several_blocks_and_rows(kind, monkeypatch) -> None:
    monkeypatch.setattr(home, "default_config", lambda V: home.Config(16, 4))
    for N, V, valid in ((1, 17, 1), (16, 33, 32), (2, 48, 48)):
        check(case(N, V, kind=kind, valid=valid))


@given(
    kind=st.sampled_from(KINDS),
    N=st.integers(0, 30),
    V=st.integers(1, 30),
    T=st.floats(0.3, 5),
    beta=st.floats(0.05, 0.95),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_in_torch(kind, N, V, T, beta) -> None:
    x, w = rand(N, 4).requires_grad_(), rand(V, 4, seed=1).requires_grad_()
    tx, tw = rand(N, 3, seed=2), rand(V, 3, seed=3)
    options = {"kind": kind, "temperature": T, "beta": beta}
    a, b = linear_kl(x, w, tx, tw, chunk_bytes=1, impl="torch", **options), home.reference(x, w, tx, tw, **options)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    for g, e in zip(torch.autograd.grad(a, [x, w]), torch.autograd.grad(b, [x, w]), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(kind, impl) -> None:
    x, w = rand(5, 8).float().requires_grad_(), rand(30, 8, seed=1).float().requires_grad_()
    loss = linear_kl(x, w, x.detach(), w.detach(), kind=kind, impl=impl)
    assert abs(loss) < 1e-5
    assert all(g.abs().max() < 1e-5 for g in torch.autograd.grad(loss, [x, w]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS)
def test_models_that_disagree_completely_stay_finite(kind, impl) -> None:
    x, w = (rand(4, 8) * 40).float().requires_grad_(), rand(30, 8, seed=1).float().requires_grad_()
    loss = linear_kl(x, w, -x.detach(), w.detach(), kind=kind, impl=impl)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [x, w]))


@pytest.mark.parametrize("impl", IMPLS)
def test_frozen_parts_get_nothing(impl) -> None:
    x, w = rand(5, 8).float().requires_grad_(), rand(30, 8, seed=1).float()
    loss = linear_kl(x, w, rand(5, 3).float(), rand(30, 3, seed=2).float(), impl=impl)
    assert torch.autograd.grad(loss, x)[0].shape == x.shape


@pytest.mark.parametrize("impl", IMPLS)
def test_under_torch_compile_without_a_graph_break(impl) -> None:
    torch._dynamo.reset()
    made = case(kind="jsd", impl=impl)
    made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
    check(made)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "tv"}, "not one of"),
        ({"temperature": 0.0}, "must be positive"),
        ({"beta": 1.0}, "between 0 and 1"),
        ({"teacher_x_NE": torch.ones(3, 2)}, "student's 2 rows"),
        ({"teacher_weight_VE": torch.ones(6, 2)}, "5 tokens"),
        ({"weights_N": torch.ones(3)}, "weights must be"),
    ],
)
def test_what_is_refused(change, match) -> None:
    good = {"x_ND": torch.ones(2, 3), "weight_VD": torch.ones(5, 3)}
    good |= {"teacher_x_NE": torch.ones(2, 2), "teacher_weight_VE": torch.ones(5, 2)}
    with pytest.raises(ValueError, match=match):
        linear_kl(**good | change)


CASES = [case(kind=kind, temperature=1.5) for kind in KINDS]
BUGS = [
    Bug("_rows_kernel", "p - u if", "p + u if"),
    Bug("_rows_kernel", "p * (u - dot)", "p * u", case=1),
    Bug("_rows_kernel", "p * (u - dot)", "p * u", case=2),
    Bug("_rows_kernel", "tl.load(weights_ptr + row) * cold", "tl.load(weights_ptr + row)"),
    Bug("_rows_kernel", "weight = tl.load(weights_ptr + row)", "weight = 1.0"),
    Bug("_terms", "u = (1 - beta) * (logp - logm)", "u = logp - logm", case=2),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    check_all_bugs_are_caught(monkeypatch, "linear_kl", bug, CASES)


TORCH_CASES = [case(kind=kind, temperature=1.5, impl="torch") for kind in KINDS]
TORCH_BUGS = [
    Bug("in_place", "grad = p.sub_(q)", "grad = p"),
    Bug("in_place", "difference.sub_(rows_C[:, None])", "difference", case=1),
    Bug("in_place", "u.sub_(dot_C[:, None])", "u", case=2),
    Bug("in_place", "weights_C / temperature", "weights_C"),
]


@pytest.mark.parametrize("bug", TORCH_BUGS, ids=str)
def test_a_planted_bug_in_the_torch_path_is_caught(bug, monkeypatch) -> None:
    check_all_bugs_are_caught(monkeypatch, "linear_kl", bug, TORCH_CASES)


def test_the_device_is_the_students() -> None:
    assert linear_kl(rand(2, 3), rand(4, 3), rand(2, 3), rand(4, 3)).device.type == DEVICE
