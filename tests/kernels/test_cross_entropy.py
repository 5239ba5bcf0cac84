from __future__ import annotations

import pytest
import torch
from kernel_checks import (
    DEVICE,
    FLOOR,
    GPU,
    IMPLS,
    LOW,
    Bug,
    errors,
    module,
    needs_triton,
    plant,
    rand,
)

from slm_kernels import cross_entropy_

home = module("cross_entropy")
Head, reference = home.Head, home.reference
pytestmark = pytest.mark.usefixtures("poisoned")

HEADS = {
    "plain": Head(),
    "z": Head(z_loss=0.03),
    "cap": Head(softcap=2.0),
    "smooth": Head(label_smoothing=0.2),
    "padded": Head(valid=29),
    "all": Head(scale=0.7, softcap=3.0, valid=29, ignore_index=5, z_loss=0.01, label_smoothing=0.1),
}


def targets(N: int, V: int, head: Head) -> torch.Tensor:
    """Random, with the first entry, the last real one and some ignored among them."""
    last = (head.valid or V) - 1
    y = torch.randint(last + 1, (N,), generator=torch.Generator().manual_seed(0))
    y[:1], y[1:2], y[2::5] = 0, last, head.ignore_index
    return y.to(DEVICE)


def compare(
    N: int = 7,
    V: int = 33,
    head: Head = Head(),  # noqa: B008
    *,
    impl: str = "triton",
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    weights: bool = False,
    logits: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
) -> None:
    """Losses and gradients against fp64, within twice the error of torch's in the same precision."""
    logits = (rand(N, V, scale=3.0) if logits is None else logits).to(dtype)
    y = targets(N, V, head) if y is None else y
    b = rand(V, seed=1).to(dtype).double() if bias else None
    w = rand(N, seed=2).abs().float() if weights else None
    found = {}
    for precision in (torch.float64, dtype):
        leaf = logits.to(precision).requires_grad_()
        rows = reference(leaf, y, head, None if b is None else b.to(precision))
        upstream = torch.ones(N, device=DEVICE) if w is None else w
        (grad,) = torch.autograd.grad(rows.loss, leaf, upstream.to(rows.loss.dtype))
        found[precision] = [*(t.detach() for t in rows), grad]
    buffer = torch.full((N, 2 * V), float("nan"), device=DEVICE, dtype=dtype)[:, :V]  # rows at a distance
    buffer.copy_(logits)
    rows = cross_entropy_(buffer, y, head, bias=None if b is None else b.to(dtype), weights_N=w, impl=impl)
    for name, ours, theirs, exact in zip(
        (*rows._fields, "gradient"), [*rows, buffer], found[dtype], found[torch.float64], strict=True
    ):
        assert ours.dtype == (dtype if name == "gradient" else torch.float32)
        (l2, top), (l2_torch, top_torch) = errors(ours, exact), errors(theirs, exact)
        assert l2 <= 2 * l2_torch + FLOOR[dtype], f"{name}: error {l2} torch {l2_torch}"
        assert top <= 2 * top_torch + 10 * FLOOR[dtype] * float(exact.abs().max()), f"{name}: error {top} {top_torch}"


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("head", HEADS)
def test_heads(head, dtype, impl) -> None:
    compare(head=HEADS[head], dtype=dtype, impl=impl)
    compare(head=HEADS[head], dtype=dtype, impl=impl, bias=True, weights=True)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 64), (2, 8193), (1, 20000), (5, 127)], ids=str)
def test_shapes(shape, impl) -> None:
    compare(*shape, impl=impl)


@needs_triton
def test_several_blocks_with_padding_in_the_last(monkeypatch) -> None:
    monkeypatch.setattr(home, "default_config", lambda V: home.Config(16, 4))
    for valid in (1, 15, 16, 17, 47, 50):
        compare(6, 50, Head(valid=valid, z_loss=0.01, label_smoothing=0.1))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_sure_model(impl) -> None:
    """p of the target goes to 1: 1 - p must not be lost where the gradient is written over the logits."""
    logits = rand(5, 40)
    y = torch.arange(5, device=DEVICE) * 7
    for margin in (4.0, 8.0, 12.0):
        certain = logits.clone()
        certain[torch.arange(5), y] += margin
        for dtype in (torch.float32, LOW):
            compare(5, 40, logits=certain, y=y, dtype=dtype, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("head", ["plain", "z", "cap"])
def test_huge_logits(head, impl) -> None:
    compare(logits=rand(7, 33) * 1e4, head=HEADS[head], impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_ignored_and_none_at_all(impl) -> None:
    logits = rand(4, 9).float()
    rows = cross_entropy_(logits, torch.full((4,), -100, device=DEVICE), impl=impl)
    assert all(t.abs().max() == 0 for t in (*rows, logits))
    rows = cross_entropy_(logits[:0], torch.empty(0, dtype=torch.int64, device=DEVICE), impl=impl)
    assert all(t.shape == (0,) for t in rows)


@pytest.mark.parametrize("impl", IMPLS)
def test_minus_infinity_is_allowed_away_from_the_target(impl) -> None:
    logits = rand(3, 12).float()
    logits[:, :5] = float("-inf")
    compare(3, 12, logits=logits.double(), y=torch.tensor([5, 8, 11], device=DEVICE), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_correct_is_the_top_entry(impl) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0], [1.0, 0.0, 2.0]], device=DEVICE)
    rows = cross_entropy_(logits, torch.tensor([1, 0, 0], device=DEVICE), impl=impl)
    assert rows.correct.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("impl", IMPLS)
def test_without_gradient_the_losses_are_the_same(impl) -> None:
    logits, y = rand(7, 33).float(), targets(7, 33, Head())
    a = cross_entropy_(logits.clone(), y, impl=impl)
    b = cross_entropy_(logits.clone(), y, grad=False, impl=impl)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_fp64_stays_fp64_in_torch_and_is_refused_by_the_kernel() -> None:
    assert (
        cross_entropy_(rand(3, 5), torch.zeros(3, dtype=torch.int64, device=DEVICE), impl="torch").loss.dtype
        == torch.float64
    )
    with pytest.raises(ValueError, match=r"fp32|triton"):
        cross_entropy_(rand(3, 5), torch.zeros(3, dtype=torch.int64, device=DEVICE), impl="triton")


KERNEL = "_rows_kernel"
BUGS = [
    (Bug(KERNEL, "(1 + 2 * z_loss * lse)", "(1 + z_loss * lse)"), "z"),
    (Bug(KERNEL, "z_loss * lse * lse", "z_loss * lse"), "z"),
    (Bug(KERNEL, "tl.where(cols == y, 1 - smoothing, 0.0)", "0.0"), "plain"),
    (Bug(KERNEL, "g -= smoothing / valid", "g -= smoothing / V"), "all"),
    (Bug(KERNEL, "g *= 4 * half * (1 - half)", "g *= half * (1 - half)"), "cap"),
    (Bug(KERNEL, "weight = scale", "weight = 1.0"), "all"),
    (Bug(KERNEL, "weight *= tl.load", "weight += tl.load"), "plain"),
    (Bug(KERNEL, "HAS_CAP) - lse)", "HAS_CAP) - top)"), "plain"),
    (Bug(KERNEL, "total * tl.exp(top - higher)", "total"), "plain"),
    (Bug(KERNEL, "if y == ignore_index:", "if y == -1:"), "plain"),
    (Bug("_score", "2 * u / cap", "u / cap"), "cap"),
    (Bug("_block_in_place", "(1 + 2 * head.z_loss * lse_B)", "(1 + head.z_loss * lse_B)"), "z"),
    (Bug("_block_in_place", "1 - tanh_BV.square()", "1 - tanh_BV"), "cap"),
    (Bug("_block_in_place", "factor_B * (e - 1)", "factor_B * -1"), "smooth"),
    (Bug("_block_in_place", "factor_B * (e / real_BV.shape[1])", "factor_B * (e / z_BV.shape[1])"), "all"),
    (Bug("_block_in_place", "counted_B.to(lse_B) * head.scale", "counted_B.to(lse_B)"), "all"),
    (Bug("_block_in_place", "z_BV[:, head.valid :] = 0", "pass"), "padded"),
]


@needs_triton
@pytest.mark.parametrize(("bug", "head"), BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, head, monkeypatch) -> None:
    monkeypatch.setattr(home, "default_config", lambda V: home.Config(16, 4))
    impl = "triton" if bug.function.startswith(("_rows", "_score")) else "torch"

    def run() -> None:
        compare(head=HEADS[head], impl=impl, bias=True, weights=True)

    run()
    plant(monkeypatch, home, bug)
    with pytest.raises(AssertionError, match=r"error|finite"):
        run()


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_the_gpu_kernel_at_the_size_of_a_vocabulary() -> None:
    for V in (49152, 128256, 151936):
        compare(64, V, Head(z_loss=1e-4), dtype=torch.bfloat16)
