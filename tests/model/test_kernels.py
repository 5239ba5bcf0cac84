"""Whole models by kernels and by plain operations: the same loss and the same gradients.

Kernels need Triton, and without a GPU its interpreter (tests/conftest.py turns it on); without either only the choices are tested.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import DEVICE, needs_triton

import slm_kernels
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.recompute import Full, Ops
from slm_kernels.dispatch import Choice
from tests.model.variants import ids

DOCS = torch.tensor([[0] * 5 + [1] * 7]).expand(2, -1)
SIZE: dict[str, Any] = {
    "dim": 32,
    "layers": 2,
    "vocab": 40,
    "context": 24,
    "init": {"name": "normal", "sigma": 0.2, "scale_residual": False},
}
GQA: dict[str, Any] = {"name": "gqa", "heads": 4, "kv_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"attention": GQA | {"qk_norm": "head"}, "ffn": {"name": "swiglu", "hidden": 48}},
    "gemma": {
        "attention": GQA | {"softcap": 5.0, "qk_norm": "head"}, "ffn": {"name": "geglu", "hidden": 48},
        "norm": {"name": "rmsnorm", "gain": "one_plus"}, "residual": "sandwich",
        "embedding": {"name": "tied", "scale": "sqrt_dim", "softcap": 8.0}, "aux": {"name": "z_loss"},
    },
    "relu2": {
        "attention": GQA | {"qk_norm": "head", "qk_norm_after_position": True}, "ffn": {"name": "relu2", "hidden": 48, "bias": True},
        "norm": {"name": "rmsnorm", "gain": "none"}, "embedding": "untied", "position": {"name": "rope", "fraction": 0.5},
    },
    "canon": {"attention": GQA | {"qk_norm": "each"}, "ffn": {"name": "swiglu", "hidden": 48}, "conv": {"name": "canon", "bias": True}},
    "mla, experts": {
        "attention": {"name": "mla", "heads": 4, "nope_dim": 6, "rope_dim": 4, "v_dim": 10},
        "ffn": {"name": "moe", "experts": 2, "top_k": 1, "hidden": 24},
    },
    "differential": {"attention": {"name": "differential", "heads": 4}, "ffn": {"name": "series", "hidden": 48}},
}  # fmt: skip
RUN: dict[str, set[str]] = {
    "qwen3": {"rms_norm", "qk_norm_rope", "activation_linear", "embedding", "linear_cross_entropy"},
    "gemma": {"rms_norm", "qk_norm_rope", "activation_linear"},
    "relu2": {"rms_norm", "qk_norm_rope", "activation_linear"},
    "canon": {"rms_norm", "short_conv", "activation_linear"},
    "mla, experts": {"rms_norm", "qk_norm_rope", "activation"},
    "differential": {"rms_norm", "qk_norm_rope"},
}
"""Kernels that must have had a part in it."""


def model_of(name: str, seed: int = 0) -> Decoder:
    return Decoder(Model(**SIZE | MODELS[name])).init_weights(seed).to(DEVICE)


def trained(
    model: Decoder, impl: str, docs_BT: torch.Tensor | None = DOCS
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss per token and the gradient of every parameter, of two rows of twelve tokens."""
    docs_BT = None if docs_BT is None else docs_BT.to(DEVICE)
    tokens, targets = (ids(2, 12, seed=s).to(DEVICE) for s in (0, 3))
    model.zero_grad(set_to_none=True)
    with slm_kernels.use(impl):
        loss = model.training_loss(tokens, targets, docs_BT=docs_BT).loss / targets.numel()
        loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == dict(model.named_parameters()).keys()
    return loss.detach(), grads


def assert_same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    for name, grad in wanted[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@needs_triton
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_is_the_same_by_kernels(name: str) -> None:
    model = model_of(name)
    plain = trained(model, "torch")
    slm_kernels.forget()
    by_kernels = trained(model, "triton")
    ran = {op for op, choices in slm_kernels.chosen().items() if Choice("triton", "asked for") in choices}
    assert RUN[name] <= ran
    assert_same(by_kernels, plain)


@needs_triton
@pytest.mark.parametrize("how", [Full(), Ops()], ids=["full", "ops"])
def test_kernels_run_again_in_the_backward_pass(how: Any) -> None:
    model = model_of("qwen3")
    plain = trained(model, "torch", None)
    how.apply(model)
    assert_same(trained(model, "triton", None), plain)


@needs_triton
def test_blocks_of_kernels_compile_as_one_graph() -> None:
    from slm.train import compiling

    model = model_of("qwen3")
    plain = trained(model, "torch")
    torch._dynamo.reset()
    compiling.apply_blocks(model, backend="aot_eager")
    assert_same(trained(model, "triton"), plain)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MODELS)
def test_every_op_of_a_model_compiles_as_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """impl.kernels=compile. Traced only: code is the compiler's matter."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, backend="aot_eager", **options))
    for op in slm_kernels.dispatch.OPS.values():
        monkeypatch.setattr(op, "compiled", None)
    model = model_of(name)
    plain = trained(model, "torch")
    torch._dynamo.reset()
    slm_kernels.forget()
    assert_same(trained(model, "compile"), plain)
    torch._dynamo.reset()
    ran = {op for op, choices in slm_kernels.chosen().items() if Choice("compile", "asked for") in choices}
    assert RUN[name] <= ran


def test_on_a_cpu_a_model_runs_plain_operations_and_says_why() -> None:
    slm_kernels.forget()
    trained(model_of("canon").cpu() if DEVICE == "cpu" else model_of("canon"), "auto" if DEVICE == "cpu" else "torch")
    assert {c.impl for choices in slm_kernels.chosen().values() for c in choices} == {"torch"}
    assert {"short_conv", "activation_linear", "rms_norm"} <= slm_kernels.chosen().keys()


def test_a_watched_linear_layer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning measures what goes into it; no kernel may go around that."""
    from slm.model.ffn import activations

    monkeypatch.setattr(activations, "fused", lambda name, *args: name == "activation_linear")
    down, seen = torch.nn.Linear(4, 3), []
    x, up = torch.randn(2, 4), torch.randn(2, 4)
    act = activations.ACTIVATIONS["silu"]
    plain = activations.activate_into(down, act, x, up)
    handle = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(activations.activate_into(down, act, x, up), plain)
    assert len(seen) == 1
    handle.remove()
