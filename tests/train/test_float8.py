"""8-bit products are what their formats say, in the layers that they are meant for, and models learn with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slm.config.errors import ConfigError
from slm.data.prepare import prepare
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.model.precision import autocast
from slm.run import Run
from slm.train import compiling, float8
from slm.train.float8 import BACK, FORTH, Float8Linear, rounded
from slm.train.loop import train
from slm.train.metrics import read_metrics
from slm.train.parallel.world import World
from slm.train.recompute import Full, Ops, RecomputePart
from tests.model.variants import BASE, ids
from tests.train.parallel.test_modes import assert_close, case, figures, launch

ALONE = World(0, 1, torch.device("cpu"))


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(out: int, inside: int, *, bias: bool = False) -> Float8Linear:
    made = nn.Linear(inside, out, bias=bias)
    with torch.no_grad():
        made.weight.copy_(drawn(out, inside, seed=1) / inside**0.5)
        if bias:
            made.bias.copy_(drawn(out, seed=2))
    made.__class__ = Float8Linear
    return made  # type: ignore[return-value]


def exact(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The rounded matrix in fp64."""
    values, scale = rounded(matrix, dtype)
    return values.double() * scale.double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inside", "out"), [(32, 64, 48), (16, 16, 16), (5, 32, 64), (1, 48, 16)])
def test_the_three_products_are_those_of_the_rounded_matrices(rows: int, inside: int, out: int, bias: bool) -> None:
    """fp32 results, so that nothing but the 8-bit formats rounds."""
    linear = layer(out, inside, bias=bias)
    x, grad = drawn(rows, inside).requires_grad_(), drawn(rows, out, seed=3)
    y = linear(x)
    y.backward(grad)
    x8, w8, g8 = exact(x.detach(), FORTH), exact(linear.weight.detach(), FORTH), exact(grad, BACK)
    expected = x8 @ w8.T + (linear.bias.detach().double() if bias else 0)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    assert x.grad is not None
    assert linear.weight.grad is not None
    torch.testing.assert_close(x.grad.double(), g8 @ w8, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(linear.weight.grad.double(), g8.T @ x8, atol=1e-4, rtol=1e-5)
    if bias:
        torch.testing.assert_close(linear.bias.grad, grad.sum(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "mantissa"), [(FORTH, 3), (BACK, 2)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_rounding_is_as_good_as_the_mantissa_at_any_size(dtype: torch.dtype, mantissa: int, size: float) -> None:
    matrix = drawn(64, 64) * size
    values, scale = rounded(matrix, dtype)
    assert values.is_contiguous()
    assert values.float().abs().max() == torch.finfo(dtype).max  # the range is used up
    big = matrix.abs() > matrix.abs().max() / 64  # smaller ones reach into the format's subnormal numbers
    error = (values.double() * scale.double() - matrix.double()).abs() / matrix.double().abs()
    assert error[big].max() <= 2.0 ** -(mantissa + 1) * 1.001


def test_a_matrix_of_zeros_stays_one() -> None:
    values, scale = rounded(torch.zeros(16, 16), FORTH)
    assert not values.float().any()
    assert torch.isfinite(scale)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    """Clamping would make an overflow the largest number, and the step would be taken."""
    linear, x = layer(16, 16), drawn(16, 16)
    x[3, 4] = bad
    assert not torch.isfinite(linear(x)).all()
    grad = drawn(16, 16)
    grad[0, 0] = bad
    linear(drawn(16, 16)).backward(grad)
    assert linear.weight.grad is not None
    assert not torch.isfinite(linear.weight.grad).all()


def test_kept_for_the_way_back_is_a_byte_a_number() -> None:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(64, 64)(drawn(128, 64).requires_grad_())
    assert sum(t.numel() * t.itemsize for t in kept) <= 128 * 64 + 64 * 64 + 8


def test_evaluation_computes_as_ever() -> None:
    linear, x = layer(32, 64, bias=True).eval(), drawn(7, 64)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


# ---- which layers -------------------------------------------------------------------------------------------


def test_layers_of_blocks_with_fitting_sides_are_taken() -> None:
    decoder = Decoder(Model(**BASE | {"ffn": {"name": "swiglu", "hidden": 40}, "aux": "mtp"}))
    names, before = set(float8.apply(decoder)), {n for n, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    assert names == {n for n in before if n.rpartition(".")[2] in "qkvo" and "block" in n}  # 40 isn't a multiple of 16
    assert all(type(decoder.get_submodule(n)) is Float8Linear for n in names)


def test_a_router_keeps_its_precision() -> None:
    decoder = Decoder(Model(**BASE | {"ffn": {"name": "moe", "hidden": 32, "experts": 16, "top_k": 2}}))
    assert not [n for n in float8.apply(decoder) if "router" in n]


def test_names_and_weights_stay() -> None:
    plain, other = (Decoder(Model(**BASE)).init_weights(0) for _ in range(2))
    float8.apply(other)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert plain.state_dict().keys() == other.state_dict().keys()


def test_a_model_without_a_fitting_layer_is_refused() -> None:
    small = BASE | {"dim": 24, "attention": {"name": "mha", "heads": 2}, "ffn": {"name": "swiglu", "hidden": 40}}
    with pytest.raises(ConfigError, match="multiples of 16"):
        float8.apply(Decoder(Model(**small)))


def test_a_device_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ConfigError, match="A100 has no 8-bit products"):
        float8.check_device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    float8.check_device(torch.device("cuda"))


# ---- with the rest ------------------------------------------------------------------------------------------


def gradients(
    recompute: RecomputePart | None = None, *, compiled: bool = False, precision: str = "fp8"
) -> list[Tensor]:
    decoder = Decoder(Model(**BASE | {"ffn": {"name": "swiglu", "hidden": 64}})).init_weights(0).train()
    if precision == "fp8":
        float8.apply(decoder)
    if recompute is not None:
        recompute.apply(decoder)
    if compiled:
        compiling.apply_blocks(decoder, backend="aot_eager")
    with autocast(torch.device("cpu"), precision):
        decoder.training_loss(ids(), ids(seed=3)).loss.backward()
    return [p.grad for p in decoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("part", [Full(), Ops()], ids=lambda p: p.part_name)
def test_running_blocks_again_changes_nothing(part: RecomputePart) -> None:
    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(part), strict=True))


def test_blocks_compile_as_one_graph_each() -> None:
    """A compiler adds in another order, a number falls to the other side of a rounding, and everything behind it is another; so not
    the same gradients, but ones that are as near to those of fp32."""
    torch._dynamo.reset()
    exact, plain, fast = gradients(precision="fp32"), gradients(), gradients(compiled=True)
    torch._dynamo.reset()
    for e, p, f in zip(exact, plain, fast, strict=True):
        assert (f - e).norm() <= 1.5 * (p - e).norm() + 1e-6


def losses(run: Run) -> list[float]:
    train(run, prepare(run.data, run.tokenizer, run.impl.data_dir), ALONE)
    return [r["loss"] for r in read_metrics(Path(str(run.log.dir)) / "metrics.jsonl") if r["kind"] == "train"]


def test_a_model_learns_as_with_bf16(tiny: Any) -> None:
    found = {p: losses(tiny(train__precision=p, train__budget={"steps": 60}, log__dir=p)) for p in ("fp8", "bf16")}
    assert found["fp8"] != found["bf16"]
    for steps in (slice(0, 10), slice(-10, None)):
        mean = {p: sum(x[steps]) / 10 for p, x in found.items()}
        assert mean["fp8"] == pytest.approx(mean["bf16"], rel=0.02)


def test_it_is_another_experiment_than_bf16(tiny: Any) -> None:
    assert tiny(train__precision="fp8").identity != tiny(train__precision="bf16").identity


@pytest.mark.slow
def test_sharded_weights_learn_the_same() -> None:
    """A scale is one for a micro-batch of a process, so two processes are compared with two. The first loss is the same; gradients
    are added in another order, and a number that falls to the other side of a rounding is off by a sixteenth."""
    launch(2, [case(m, model={}, impl__parallel=m, train__precision="fp8") for m in ("ddp", "fsdp")])
    assert figures("ddp")[0] == figures("fsdp")[0]
    assert_close("ddp", "fsdp", 5e-3)
