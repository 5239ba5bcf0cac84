"""How every op of slm_kernels is held against fp64: one check for all of them.

Without a GPU the kernels run under Triton's interpreter, which tests/conftest.py switches on. It rounds fp32 to bf16 by
truncation, so that bf16 is left to a GPU but for one test of each main op.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import linecache
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from slm_kernels._triton import INTERPRETED, MISSING

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with it
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
CAN_TRITON = not MISSING and (GPU or INTERPRETED)
IMPLS = [
    "torch",
    pytest.param(
        "triton", marks=pytest.mark.skipif(not CAN_TRITON, reason=MISSING or "no GPU, and Triton is not interpreted")
    ),
]
needs_triton = pytest.mark.skipif(not CAN_TRITON, reason=MISSING or "no GPU, and Triton is not interpreted")
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
LOW = torch.bfloat16 if GPU else torch.float16
FLOOR = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-3, torch.float64: 1e-12}


@dataclass
class Case:
    """An op at one size. ``ours`` and ``reference`` take ``inputs`` and return a tensor or several."""

    ours: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Sequence[Tensor | None]
    """fp64 tensors get gradients; tensors of other dtypes are passed on as they are."""
    name: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal, fp64, on the device; the same for the same seed."""
    g = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(DEVICE)


def _outputs(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for t in found if t.dtype.is_floating_point]


def _run(
    call: Callable[..., Any], inputs: Sequence[Tensor | None], upstream: list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of all fp inputs. Without ``upstream`` ones are drawn, of the outputs' shapes."""
    leaves = [t.clone().requires_grad_() if t is not None and t.dtype.is_floating_point else t for t in inputs]
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    before = [None if t is None else t.detach().clone() for t in leaves]
    outputs = _outputs(call(*leaves))
    live = [t for t in outputs if t.requires_grad]
    if upstream is None:
        upstream = [rand(*t.shape, seed=100 + i) for i, t in enumerate(live)]
    sent = [u.to(t.dtype).transpose(0, -1).contiguous().transpose(0, -1) for u, t in zip(upstream, live, strict=True)]
    kept = [u.clone() for u in sent]
    grads = torch.autograd.grad(live, wanted, sent, allow_unused=True) if live else ()
    for now, was in [*zip(leaves, before, strict=True), *zip(sent, kept, strict=True)]:
        assert now is None or torch.equal(now.detach(), was), "an input was modified"
    return [t.detach() for t in outputs], [
        torch.zeros_like(t) if g is None else g for g, t in zip(grads, wanted, strict=True)
    ]


def errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Relative L2 error and greatest absolute one, against fp64."""
    assert found.shape == exact.shape, (found.shape, exact.shape)
    assert torch.isfinite(found).all() or not torch.isfinite(exact).all(), "not finite"
    if not exact.numel():
        return 0.0, 0.0
    difference = found.detach().double() - exact
    norm = float(exact.norm())
    return float(difference.norm()) / (norm or 1.0), float(difference.abs().max())


def check(case: Case, dtype: torch.dtype = torch.float32, *, slack: float = 1.0) -> None:
    """Outputs and gradients are as near to fp64 as torch's in the same precision, within a factor of two.

    Memory that is not written is NaN (the test asks for the fixture `poisoned`), inputs and incoming gradients must not change.
    """
    given = [t.to(dtype) if t is not None and t.dtype == torch.float64 else t for t in case.inputs]
    exact_inputs = [t.double() if t is not None and t.dtype.is_floating_point else t for t in given]
    shapes = _outputs(
        case.reference(
            *[t.clone().requires_grad_() if t is not None and t.dtype.is_floating_point else t for t in exact_inputs]
        )
    )
    upstream = [
        rand(*t.shape, seed=100 + i).to(dtype).double() for i, t in enumerate(t for t in shapes if t.requires_grad)
    ]
    exact = _run(case.reference, exact_inputs, upstream)
    plain = _run(case.reference, given, upstream)
    ours = _run(case.ours, given, upstream)
    for kind, e, p, o in zip(("output", "gradient"), exact, plain, ours, strict=True):
        assert len(e) == len(o)
        for i, (wanted, theirs, found) in enumerate(zip(e, p, o, strict=True)):
            l2, top = errors(found, wanted)
            l2_torch, top_torch = errors(theirs, wanted)
            floor = FLOOR[dtype] * slack
            size = float(wanted.abs().max()) if wanted.numel() else 0.0
            where = f"{case.name} {kind} {i} in {dtype}"
            assert l2 <= 2 * l2_torch + floor, f"{where}: relative L2 error {l2:.2e}, torch {l2_torch:.2e}"
            assert top <= 2 * top_torch + 10 * floor * max(size, 1e-3), (
                f"{where}: error {top:.2e}, torch {top_torch:.2e}"
            )


def module(name: str) -> Any:
    """The module slm_kernels.NAME, also where the package has a function of that name."""
    return importlib.import_module(f"slm_kernels.{name}")


@dataclass
class Bug:
    """A change to the text of a function of an op's module."""

    function: str
    old: str
    new: str
    module: str = ""
    case: int = 0
    """Which of the op's cases must see it."""

    def __str__(self) -> str:
        return f"{self.function}: {self.old} -> {self.new}"


def plant(monkeypatch: pytest.MonkeyPatch, home: Any, bug: Bug) -> None:
    """Replaces ``old`` by ``new`` in the source of a kernel or function, for the duration of a test."""
    target = getattr(home, bug.function)
    kernel = hasattr(target, "fn")
    source = textwrap.dedent(inspect.getsource(target.fn if kernel else target))
    assert source.count(bug.old) == 1, f"{bug.old!r} occurs {source.count(bug.old)} times in {bug.function}"
    source = source.replace(bug.old, bug.new)
    file = f"<{bug}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    monkeypatch.setattr(home, bug.function, target)  # remembered, to be put back
    exec(compile(source, file, "exec", flags=__future__.annotations.compiler_flag), home.__dict__)


_right: set[int] = set()
"""Cases that have passed without a bug."""


def check_all_bugs_are_caught(monkeypatch: pytest.MonkeyPatch, name: str, bug: Bug, cases: Sequence[Case]) -> None:
    """The case is right as it is, and wrong with the bug."""
    case = cases[bug.case]
    if id(case) not in _right:
        check(case)
        _right.add(id(case))
    plant(monkeypatch, module(bug.module or name), bug)
    with pytest.raises(AssertionError, match=r"error|finite|modified"):
        check(case)
