"""On a GPU: the same steps as on the CPU, and none of them waits for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from train.optim.cases import PARTS, parameters, state_of, step, tensors

from slm.train.averaging import Ema
from slm.train.optim import OptimPart
from slm.train.spikes import SpikeGuard, Spikes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_part = pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))


@each_part
def test_as_on_the_cpu(part: OptimPart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.train.optim.steps.newton_schulz.fast_bf16", lambda device: False)
    here = parameters()
    there = [replace(p, tensor=torch.nn.Parameter(p.tensor.detach().cuda())) for p in here]
    a, b = part.build(here), part.build(there)
    for seed in range(4):
        step(a, here, tensors(seed))
        step(b, there, {n: t.cuda() for n, t in tensors(seed).items()})
    for p, q in zip(here, there, strict=True):
        if p.tensor_class == "matrix" and part.part_name == "soap" and p.tensor.shape[-1] != p.tensor.shape[-2]:
            continue  # the basis of a singular gram's null space is open
        torch.testing.assert_close(q.tensor.detach().cpu(), p.tensor.detach(), rtol=1e-4, atol=1e-5)


@each_part
def test_no_step_waits_for_the_device_and_bad_ones_change_nothing(part: OptimPart) -> None:
    named = [replace(p, tensor=torch.nn.Parameter(p.tensor.detach().cuda())) for p in parameters()]
    optimizers, guard = part.build(named), SpikeGuard(Spikes(sigmas=6), "cuda")
    ema = Ema({p.name: p.tensor for p in named}, 0.9)
    grads = [{n: t.cuda() for n, t in tensors(seed).items()} for seed in range(3)]
    step(optimizers, named, grads[0])  # state is made, SOAP's first basis is computed
    bad = {n: torch.full_like(t, float("nan")) for n, t in grads[0].items()}
    norm, nan = torch.ones((), device="cuda"), torch.full((), float("nan"), device="cuda")
    torch.cuda.set_sync_debug_mode("error" if part.part_name != "soap" else "default")
    try:
        for given, size in ((grads[1], norm), (bad, nan)):
            for p in named:
                p.tensor.grad = given[p.name].clone()
            flag = guard.check(size)
            for optimizer in optimizers:
                optimizer.found_inf, optimizer.grad_scale = flag, None  # type: ignore[attr-defined]
                optimizer.step()
            ema.update(flag)
            if size is norm:
                weights, state = [p.tensor.detach().clone() for p in named], state_of(optimizers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(p.tensor, w) for p, w in zip(named, weights, strict=True))
    for before, after in zip(state, state_of(optimizers), strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before.keys() - {"calls"})
    assert guard.read()["not_finite"] == 1
