"""Each optimiser against its paper's equations, written plainly in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from train.optim.cases import SHAPES, parameters, step, tensors

from slm.train.optim import (
    SGD,
    SOAP,
    Adafactor,
    AdamMini,
    AdamW,
    Lion,
    Muon,
    OptimPart,
    ScheduleFree,
    set_rate,
)
from slm.train.optim.steps import newton_schulz

Array = np.ndarray
Reference = Iterator[Array]
STEPS = 13
LR, DECAY = 0.03, 0.2


def rates() -> list[float]:
    """A schedule's factors, so that the moving rate is part of the test."""
    return [0.25, 0.5] + [1.0] * (STEPS - 5) + [0.75, 0.5, 0.25]


def adamw(
    w: Array, grads: list[Array], decay: float, name: str, b1: float = 0.9, b2: float = 0.95, cautious: bool = False
) -> Array:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, f) in enumerate(zip(grads, rates(), strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        mask = (u * w >= 0) if cautious else 1.0
        w = w - LR * f * (u + decay * w * mask)
    return w


def lion(w: Array, grads: list[Array], decay: float, name: str, b1: float = 0.9, b2: float = 0.99) -> Array:
    m = np.zeros_like(w)
    for g, f in zip(grads, rates(), strict=True):
        w = w - LR * f * (np.sign(b1 * m + (1 - b1) * g) + decay * w)
        m = b2 * m + (1 - b2) * g
    return w


def sgd(w: Array, grads: list[Array], decay: float, name: str) -> Array:
    m = np.zeros_like(w)
    for g, f in zip(grads, rates(), strict=True):
        m = 0.9 * m + g
        w = w - LR * f * (g + 0.9 * m + decay * w)
    return w


def matrices(w: Array) -> Array:
    return w.reshape(-1, *w.shape[-2:])


def muon(w: Array, grads: list[Array], decay: float, name: str, steps: int = 5) -> Array:
    """Jordan's algorithm with Moonlight's scale, one matrix after the other."""
    if SHAPES[name][0] != "matrix":
        return adamw(w, grads, decay, name)
    m = np.zeros_like(w)
    for g, f in zip(grads, rates(), strict=True):
        m = 0.95 * m + 0.05 * g
        update = np.stack([newton_schulz_5(x, steps) for x in matrices(0.05 * g + 0.95 * m)]).reshape(w.shape)
        w = w * (1 - LR * f * decay) - LR * f * 0.2 * math.sqrt(max(w.shape[-2:])) * update
    return w


def newton_schulz_5(x: Array, steps: int) -> Array:
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def soap(w: Array, grads: list[Array], decay: float, name: str, max_dim: int = 8) -> Array:
    """Algorithm 3 of the paper, with the choices of the authors' code: the first gradient sets the basis and moves nothing; second
    moments are reordered with the eigenvalues; one step of power iteration and QR. A side longer than ``max_dim`` isn't rotated."""
    if SHAPES[name][0] != "matrix":
        return adamw(w, grads, decay, name, 0.95, 0.95)
    return np.stack(
        [_soap_matrix(x, gs, decay, max_dim) for x, *gs in zip(matrices(w), *map(matrices, grads), strict=True)]
    ).reshape(w.shape)


def _soap_matrix(w: Array, grads: list[Array], decay: float, max_dim: int, frequency: int = 3) -> Array:
    m, v, b = np.zeros_like(w), np.zeros_like(w), 0.95
    left, right = np.zeros((len(w),) * 2), np.zeros((w.shape[1],) * 2)
    ql, qr = np.eye(len(w)), np.eye(w.shape[1])
    for t, (g, f) in enumerate(zip(grads, rates(), strict=True)):
        if t > 0:
            m, v = b * m + (1 - b) * g, b * v + (1 - b) * (ql.T @ g @ qr) ** 2
            rotated = (ql.T @ m @ qr) / (1 - b**t) / (np.sqrt(v / (1 - b**t)) + 1e-8)
            w = w - LR * f * (ql @ rotated @ qr.T + decay * w)
        left, right = b * left + (1 - b) * g @ g.T, b * right + (1 - b) * g.T @ g
        if len(ql) <= max_dim:
            ql, order = next_basis(left, ql, t, frequency)
            v = v[order]
        if len(qr) <= max_dim:
            qr, order = next_basis(right, qr, t, frequency)
            v = v[:, order]
    return w


def next_basis(gram: Array, basis: Array, t: int, frequency: int) -> tuple[Array, Array]:
    """The basis after step t, and in which order its second moments are those of the old one."""
    if t == 0:
        return np.linalg.eigh(gram)[1][:, ::-1], np.arange(len(gram))
    if t % frequency:
        return basis, np.arange(len(gram))
    order = np.argsort(-np.diag(basis.T @ gram @ basis), kind="stable")
    return np.linalg.qr(gram @ basis[:, order])[0], order


def adam_mini(w: Array, grads: list[Array], decay: float, name: str, b1: float = 0.9, b2: float = 0.95) -> Array:
    rowwise = SHAPES[name][0] in ("matrix", "head", "embedding")
    m, v = np.zeros_like(w), 0.0
    for t, (g, f) in enumerate(zip(grads, rates(), strict=True), 1):
        square = (g**2).mean(-1, keepdims=True) if rowwise else g**2
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * square
        w = w - LR * f * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * w)
    return w


def adafactor(w: Array, grads: list[Array], decay: float, name: str) -> Array:
    """Algorithms 4 and 5 of the paper with the rate from outside."""
    if SHAPES[name][0] in ("matrix", "head", "embedding"):
        out = [_adafactor(x, gs, decay, True) for x, *gs in zip(matrices(w), *map(matrices, grads), strict=True)]
        return np.stack(out).reshape(w.shape)
    return _adafactor(w, grads, decay, False)


def _adafactor(w: Array, grads: list[Array], decay: float, factored: bool) -> Array:
    r = c = v = 0.0
    for t, (g, f) in enumerate(zip(grads, rates(), strict=True), 1):
        b = 1 - t**-0.8
        if factored:
            r, c = b * r + (1 - b) * (g**2).mean(1), b * c + (1 - b) * (g**2).mean(0)
            second = np.outer(r, c) / r.mean()
        else:
            second = v = b * v + (1 - b) * g**2
        u = g / np.sqrt(second)
        u = u / max(1.0, np.sqrt((u**2).mean()))
        w = w - LR * f * (u + decay * w)
    return w


def schedule_free(w: Array, grads: list[Array], decay: float, name: str, b1: float = 0.9, b2: float = 0.95) -> Array:
    """y after the last step, with x kept (the paper's form, not the memory-saving one)."""
    x = z = y = w
    v, weights, largest = np.zeros_like(w), 0.0, 0.0
    for t, (g, f) in enumerate(zip(grads, rates(), strict=True), 1):
        lr = LR * f
        v = b2 * v + (1 - b2) * g**2
        u = g / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * y
        z = z - lr * u
        largest = max(largest, lr)
        weights += largest**2
        c = largest**2 / weights
        x = (1 - c) * x + c * z
        y = (1 - b1) * z + b1 * x
    return y


UNDETERMINED = {"soap": ("k", "v", "odd", "single")}
"""Where the first gradient leaves a rotated side's gram singular, and so the basis of its null space open."""
CASES: dict[str, tuple[OptimPart, Callable[..., Array]]] = {
    "adamw": (AdamW(), adamw),
    "adamw cautious": (AdamW(cautious=True), lambda *a: adamw(*a, cautious=True)),
    "lion": (Lion(), lion),
    "sgd": (SGD(), sgd),
    "muon": (Muon(), muon),
    "soap": (SOAP(frequency=3, max_dim=8), soap),
    "adam_mini": (AdamMini(), adam_mini),
    "adafactor": (Adafactor(), adafactor),
    "schedule_free": (ScheduleFree(), schedule_free),
}


def trained(part: OptimPart, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    named = parameters(dtype)
    optimizers = part.with_(lr=LR, weight_decay=DECAY).build(named)
    for seed, factor in enumerate(rates()):
        set_rate(optimizers, factor)
        step(optimizers, named, tensors(seed))
    return {p.name: p.tensor.detach().double() for p in named}


def expected(reference: Callable[..., Array], name: str) -> torch.Tensor:
    decay = DECAY if SHAPES[name][0] in ("matrix", "head") else 0.0
    start = tensors(1000)[name].double().numpy()
    return torch.from_numpy(reference(start, [tensors(s)[name].double().numpy() for s in range(STEPS)], decay, name))


@pytest.fixture(autouse=True)
def _no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with bf16 instructions Muon would iterate in bf16."""
    monkeypatch.setattr(newton_schulz, "fast_bf16", lambda device: False)


@pytest.mark.parametrize("case", CASES)
def test_float64_follows_the_paper(case: str) -> None:
    """The algorithm itself: rounding is out of the way."""
    part, reference = CASES[case]
    for name, found in trained(part, torch.float64).items():
        if name in UNDETERMINED.get(case, ()):
            continue
        torch.testing.assert_close(found, expected(reference, name), rtol=1e-6, atol=1e-7, msg=f"{case} {name}")


@pytest.mark.parametrize("case", CASES)
def test_float32_is_within_1e_6(case: str) -> None:
    """As it is used: the distance of the weights after all steps, relative to their size."""
    part, reference = CASES[case]
    for name, found in trained(part, torch.float32).items():
        if name in UNDETERMINED.get(case, ()):
            continue
        right = expected(reference, name)
        assert (found - right).norm() / right.norm() < 1e-6, (case, name)


def test_schedule_frees_averages_are_the_papers() -> None:
    """x, recovered from y and z, is the average that the paper keeps."""
    part = ScheduleFree(lr=LR, weight_decay=0.0)
    named = parameters(torch.float64)
    [optimizer] = part.build(named)
    zs, weights, largest = [], [], 0.0
    for seed, factor in enumerate(rates()):
        set_rate([optimizer], factor)
        step([optimizer], named, tensors(seed))
        largest = max(largest, LR * factor)
        zs.append({p.name: optimizer.state[p.tensor]["z"].clone() for p in named})
        weights.append(largest**2)
    optimizer.eval_mode()
    for p in named:
        average = sum(w * z[p.name] for w, z in zip(weights, zs, strict=True)) / sum(weights)
        torch.testing.assert_close(p.tensor.detach(), average, rtol=1e-6, atol=1e-6)
