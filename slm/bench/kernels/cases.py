"""What is measured: for each op the shapes of small language models, its work, and a plain torch version of it.

Bytes are the least that the op can move: every input read once, every output written once, in each direction. FLOPs are those of
its matrix products. Both together give a floor for the time, against which a measured one is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import slm_kernels
from slm_kernels.dispatch import OPS


class Shape(NamedTuple):
    """Widths of a model."""

    name: str
    dim: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


SHAPES = {
    s.name: s
    for s in (
        Shape("smollm2-135m", 576, 1536, 9, 3, 64, 49_152),
        Shape("smollm2-360m", 960, 2560, 15, 5, 64, 49_152),
        Shape("qwen3-0.6b", 1024, 3072, 16, 8, 128, 151_936),
        Shape("llama-3.2-1b", 2048, 8192, 32, 8, 64, 128_256),
        Shape("llama-3.2-3b", 3072, 8192, 24, 8, 128, 128_256),
    )
}
QUICK = Shape("quick", 64, 128, 4, 2, 16, 512)


class Work(NamedTuple):
    """Least bytes and FLOPs of one direction."""

    bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Case:
    """One op at one shape. ``ours`` takes ``impl`` besides the inputs; floating inputs get gradients if ``back`` isn't None."""

    op: str
    shape: str
    make: Callable[[int], list[Tensor]]
    """Inputs in fp32 on the CPU, for so many tokens; integers stay integers, what is named in ``fixed`` gets no gradient."""
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    forward: Work
    back: Work | None
    tokens: int
    liger: str = ""
    """Under which name `peers` has it."""
    fixed: tuple[int, ...] = ()


Generator = Callable[[Shape, int, int], Case]
CASES: dict[str, tuple[Generator, tuple[str, ...]]] = {}
"""Per op: what makes a case of (model's widths, tokens, bytes per number), and the models it is measured at."""


def measured_at(op: str, *models: str) -> Callable[[Generator], Generator]:
    """Registers the function that makes an op's cases."""

    def register(make: Generator) -> Generator:
        CASES[op] = make, models
        return make

    return register


def cases(only: Sequence[str], *, tokens: int, size: int, quick: bool) -> Iterator[Case]:
    """The cases of some ops (none named: all), for numbers of ``size`` bytes."""
    for op, (make, models) in CASES.items():
        if not only or op in only:
            for name in ("quick",) if quick else models:
                yield make(QUICK if quick else SHAPES[name], tokens, size)


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal, fp32, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def tokens_of(n: int, vocab: int) -> Tensor:
    """Ids as frequent as words are: a few often, most seldom."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(7))
    return (vocab**uniform - 1).long().clamp(max=vocab - 1)


@measured_at("linear_cross_entropy", "smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "llama-3.2-3b")
def _head(s: Shape, tokens: int, size: int) -> Case:
    def plain(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(
            F.linear(x, w).float() if x.dtype != torch.float64 else F.linear(x, w), y, reduction="sum"
        )

    def ours(x: Tensor, w: Tensor, y: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.linear_cross_entropy(x, w, y, impl=impl)[0]

    weights, product = s.vocab * s.dim * size, 2.0 * tokens * s.dim * s.vocab
    return Case(
        "linear_cross_entropy", f"{tokens} x {s.dim} x {s.vocab}",
        lambda n: [rand(n, s.dim), rand(s.vocab, s.dim, seed=1, scale=s.dim**-0.5), tokens_of(n, s.vocab)],
        ours, plain, Work(tokens * s.dim * size + weights, product), Work(2 * (tokens * s.dim * size + weights), 2 * product),
        tokens, "linear_cross_entropy",
    )  # fmt: skip


@measured_at("rms_norm", *SHAPES)
def _norm(s: Shape, tokens: int, size: int) -> Case:
    def ours(x: Tensor, w: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.rms_norm(x, w, 1e-5, impl=impl)

    n = tokens * s.dim * size
    return Case(
        "rms_norm", f"{tokens} x {s.dim}", lambda rows: [rand(rows, s.dim), rand(s.dim, seed=1)],
        ours, lambda x, w: F.rms_norm(x, (x.shape[-1],), w, 1e-5), Work(2 * n), Work(3 * n), tokens, "rms_norm",
    )  # fmt: skip


@measured_at("qk_norm_rope", "smollm2-360m", "qwen3-0.6b", "llama-3.2-3b")
def _rotation(s: Shape, tokens: int, size: int) -> Case:
    width, half = s.head_dim, s.head_dim // 2

    def make(rows: int) -> list[Tensor]:
        angle = torch.arange(rows)[:, None] / 10_000 ** (torch.arange(half) / half)
        q, k = rand(1, rows, s.heads, width), rand(1, rows, s.kv_heads, width, seed=1)
        return [q, k, angle.cos()[None], angle.sin()[None], rand(width, seed=2), rand(width, seed=3)]

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wq: Tensor, wk: Tensor, *, impl: str) -> Any:
        return slm_kernels.qk_norm_rope(q, k, cos, sin, wq, wk, eps=1e-6, impl=impl)

    def plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, wq: Tensor, wk: Tensor) -> Any:
        def one(x: Tensor, w: Tensor) -> Tensor:
            a, b = F.rms_norm(x, (width,), w, 1e-6).chunk(2, -1)
            c, s = (t.to(x.dtype)[:, :, None] for t in (cos, sin))
            return torch.cat((a * c - b * s, b * c + a * s), -1)

        return one(q, wq), one(k, wk)

    n = tokens * (s.heads + s.kv_heads) * width * size
    shape = f"{tokens} x ({s.heads} + {s.kv_heads}) x {width}"
    return Case("qk_norm_rope", shape, make, ours, plain, Work(2 * n), Work(3 * n), tokens, fixed=(2, 3))


@measured_at("activation", "smollm2-135m", "qwen3-0.6b", "llama-3.2-1b")
def _gated(s: Shape, tokens: int, size: int) -> Case:
    def ours(g: Tensor, u: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.swiglu(g, u, impl=impl)

    n = tokens * s.hidden * size
    return Case(
        "activation", f"silu {tokens} x {s.hidden}", lambda rows: [rand(rows, s.hidden), rand(rows, s.hidden, seed=1)],
        ours, lambda g, u: F.silu(g) * u, Work(3 * n), Work(5 * n), tokens, "swiglu",
    )  # fmt: skip


@measured_at("activation_linear", "smollm2-135m", "qwen3-0.6b", "llama-3.2-1b")
def _into_linear(s: Shape, tokens: int, size: int) -> Case:
    def ours(g: Tensor, u: Tensor, w: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.activation_linear(g, w, u, impl=impl)

    n, out, product = tokens * s.hidden * size, tokens * s.dim * size, 2.0 * tokens * s.hidden * s.dim
    weights = s.hidden * s.dim * size
    return Case(
        "activation_linear", f"silu {tokens} x {s.hidden} x {s.dim}",
        lambda rows: [rand(rows, s.hidden), rand(rows, s.hidden, seed=1), rand(s.dim, s.hidden, seed=2, scale=s.hidden**-0.5)],
        ours, lambda g, u, w: F.linear(F.silu(g) * u, w), Work(2 * n + weights + out, product),
        Work(4 * n + 2 * weights + out, 2 * product), tokens,
    )  # fmt: skip


@measured_at("embedding", "smollm2-135m", "qwen3-0.6b")
def _embedding(s: Shape, tokens: int, size: int) -> Case:
    def ours(y: Tensor, w: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.embedding(y, w, impl=impl)

    n = tokens * s.dim * size
    return Case(
        "embedding", f"{tokens} of {s.vocab} x {s.dim}", lambda rows: [tokens_of(rows, s.vocab), rand(s.vocab, s.dim)],
        ours, F.embedding, Work(2 * n), Work(n + s.vocab * s.dim * size), tokens,
    )  # fmt: skip


@measured_at("short_conv", "smollm2-135m", "llama-3.2-1b")
def _conv(s: Shape, tokens: int, size: int) -> Case:
    def ours(x: Tensor, w: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.short_conv(x, w, residual=True, impl=impl)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        taps = w.shape[1]
        return x + F.conv1d(x.mT, w[:, None], padding=taps - 1, groups=x.shape[2])[..., : x.shape[1]].mT

    n = tokens * s.dim * size
    return Case(
        "short_conv", f"{tokens} x {s.dim}, 4 taps", lambda rows: [rand(1, rows, s.dim), rand(s.dim, 4, seed=1)],
        ours, plain, Work(2 * n), Work(3 * n), tokens,
    )  # fmt: skip


@measured_at("newton_schulz", "smollm2-360m", "llama-3.2-1b")
def _iteration(s: Shape, tokens: int, size: int) -> Case:
    count, rows, columns, steps = 4, s.dim, s.hidden, 5
    rest = (slm_kernels.newton_schulz.__defaults__ or ())[0]

    def ours(g: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.newton_schulz(g, impl=impl)

    flops = steps * count * (4.0 * rows * rows * columns + 2.0 * rows**3)  # as plain products, mirror images not saved
    return Case(
        "newton_schulz", f"{count} x {rows} x {columns}", lambda _: [rand(count, rows, columns)],
        ours, lambda g: OPS["newton_schulz"].torch(g, rest, 1.0, None), Work(2.0 * count * rows * columns * size, flops),
        None, count,
    )  # fmt: skip


@measured_at("linear_kl", "smollm2-135m")
def _divergence(s: Shape, tokens: int, size: int) -> Case:
    teacher = 2 * s.dim

    def make(n: int) -> list[Tensor]:
        student = [rand(n, s.dim), rand(s.vocab, s.dim, seed=1, scale=s.dim**-0.5)]
        return [*student, rand(n, teacher, seed=2), rand(s.vocab, teacher, seed=3, scale=teacher**-0.5)]

    def ours(x: Tensor, w: Tensor, xt: Tensor, wt: Tensor, *, impl: str) -> Tensor:
        return slm_kernels.linear_kl(x, w, xt, wt, impl=impl)

    def plain(x: Tensor, w: Tensor, xt: Tensor, wt: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        ours, theirs = (F.linear(a, b).to(wide).log_softmax(-1) for a, b in ((x, w), (xt, wt)))
        return F.kl_div(ours, theirs, log_target=True, reduction="sum")

    own, other = 2.0 * tokens * s.dim * s.vocab, 2.0 * tokens * teacher * s.vocab
    moved = (tokens + s.vocab) * s.dim * size
    return Case(
        "linear_kl", f"{tokens} x {s.dim} x {s.vocab}, teacher {teacher}", make, ours, plain,
        Work(3 * moved, own + other), Work(2 * moved, 2 * own), tokens, fixed=(2, 3),
    )  # fmt: skip
