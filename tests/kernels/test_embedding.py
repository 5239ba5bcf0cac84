from __future__ import annotations

import pytest
import torch
from kernel_checks import (
    DEVICE,
    IMPLS,
    Bug,
    Case,
    check,
    check_all_bugs_are_caught,
    module,
    needs_gpu,
    needs_triton,
    rand,
)

from slm_kernels import embedding

home = module("embedding")
pytestmark = pytest.mark.usefixtures("poisoned")


def case(*shape: int, V: int = 11, D: int = 5, impl: str = "triton") -> Case:
    """Ids as in text: one makes up half of it, some never come."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(V, shape, generator=g).where(torch.rand(shape, generator=g) < 0.5, V - 1).to(DEVICE)
    return Case(
        lambda w: embedding(ids, w, impl=impl), lambda w: home.reference(ids, w), [rand(V, D)], f"embedding {shape}"
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(1,), (2, 9), (3, 2, 4), (40,)], ids=str)
def test_matches_fp64(shape, impl) -> None:
    check(case(*shape, impl=impl))
    check(case(*shape, V=3, D=300, impl=impl))


@needs_triton
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17])
def test_stretches_of_any_length(count) -> None:
    """A program adds eight places at a time."""
    ids = torch.tensor([0] * 3 + [2] * count + [5], device=DEVICE)[torch.randperm(count + 4)]
    check(Case(lambda w: embedding(ids, w, impl="triton"), lambda w: home.reference(ids, w), [rand(7, 6)]))


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing(impl) -> None:
    w = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    y = embedding(torch.empty(2, 0, dtype=torch.int64, device=DEVICE), w, impl=impl)
    assert y.shape == (2, 0, 3)
    assert torch.autograd.grad(y.sum(), w)[0].abs().max() == 0


@needs_triton
def test_half_precision_gradients_are_summed_in_fp32() -> None:
    """2048 + 1 is 2048 in fp16: eight ones would be lost."""
    ids = torch.zeros(9, dtype=torch.int64, device=DEVICE)
    w = torch.zeros(2, 1, device=DEVICE, dtype=torch.float16, requires_grad=True)
    upstream = torch.tensor([[2048.0]] + [[1.0]] * 8, device=DEVICE, dtype=torch.float16)
    (g,) = torch.autograd.grad(embedding(ids, w, impl="triton"), w, upstream)
    assert g.tolist() == [[2056.0], [0.0]]


@needs_triton
def test_strided_and_expanded_gradients() -> None:
    made = case(3, 4)
    w = made.inputs[0].float().requires_grad_()
    for upstream in (rand(3, 5, 4).float().transpose(1, 2), torch.ones(1, device=DEVICE).expand(3, 4, 5)):
        grads = [torch.autograd.grad(call(w), w, upstream)[0] for call in (made.ours, made.reference)]
        torch.testing.assert_close(*grads)


@needs_triton
def test_under_torch_compile_without_a_graph_break() -> None:
    made = case(2, 9)
    made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
    check(made)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="weight must be"):
        embedding(torch.zeros(2, dtype=torch.int64), torch.ones(3))


CASES = [case(33)]
BUGS = [
    Bug("_backward_kernel", "if token != before:", "if True:"),
    Bug("_backward_kernel", "== ROWS", "> ROWS"),
    Bug("_backward_kernel", "at += ROWS", "at += ROWS - 1"),
    Bug("_backward_kernel", "total += tl.load", "total = tl.load"),
    Bug(
        "_launch_backward", "ids.flatten().sort(stable=True)", "ids.flatten().sort(descending=True)[0], torch.arange(M)"
    ),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    monkeypatch.setattr(
        home._function.function,
        "backward",
        staticmethod(lambda ctx, *g: home._backward(home._launch_backward, ctx, *g)),
    )
    check_all_bugs_are_caught(monkeypatch, "embedding", bug, CASES)


@needs_gpu
def test_two_runs_give_the_same_bits_on_a_gpu() -> None:
    ids = torch.randint(1000, (16384,), device="cuda") // 17
    w = torch.randn(1000, 576, device="cuda", requires_grad=True)
    up = torch.randn(16384, 576, device="cuda")
    a, b = (torch.autograd.grad(embedding(ids, w, impl="triton"), w, up)[0] for _ in range(2))
    assert torch.equal(a, b)
