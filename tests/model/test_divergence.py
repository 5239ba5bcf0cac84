"""Divergence from a teacher in chunks, against the whole distributions written out."""

from __future__ import annotations

import pytest
import torch

from slm.model import divergence
from slm.model.divergence import FromModel, Head, Outcomes, coarse, outcomes, teacher_divergence

N, D, E, V = 70, 6, 5, 23
KINDS = ("forward", "reverse", "js")


def made(seed: int, width: int, *, bias: bool = False, scale: float = 1.0, softcap: float | None = None):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(N, width), Head(draw(V, width), draw(V) if bias else None, scale, softcap)


def logits(x: torch.Tensor, head: Head) -> torch.Tensor:
    return head.logits(x @ head.weight_VD.mT, head.bias_V)


def by_hand(p: torch.Tensor, q: torch.Tensor, kind: str) -> torch.Tensor:
    kl = lambda a, b: (a * (a.log() - b.log())).sum(-1)  # noqa: E731
    return {"forward": kl(q, p), "reverse": kl(p, q), "js": (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [{}, {"bias": True}, {"softcap": 3.0}, {"scale": 0.5}, {"bias": True, "softcap": 2.0, "scale": 2.0}])  # fmt: skip
def test_values_and_gradients_are_those_of_whole_distributions(kind: str, odd: dict) -> None:
    x, student = made(0, D, **odd)
    y, teacher = made(1, E, **odd)
    counted = torch.arange(N) % 3 > 0
    learned = [t.requires_grad_() for t in (x, student.weight_VD, student.bias_V) if t is not None]
    options = {"kind": kind, "temperature": 1.7, "chunk_bytes": 1}  # as few rows as a chunk may have
    found = teacher_divergence(student, x, FromModel(y, teacher), counted, **options)
    p, q = ((z / 1.7).softmax(-1) for z in (logits(x, student), logits(y, teacher)))
    wanted = by_hand(p, q, kind)[counted].sum()
    assert torch.allclose(found, wanted, rtol=1e-9)
    for a, b in zip(torch.autograd.grad(3 * found, learned), torch.autograd.grad(3 * wanted, learned), strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_outcomes_are_the_top_tokens_and_one_for_all_others(kind: str) -> None:
    x, student = made(0, D)
    y, teacher = made(1, E)
    x.requires_grad_()
    counted = torch.ones(N, dtype=torch.bool)
    found = teacher_divergence(student, x, FromModel(y, teacher), counted, kind=kind, top_k=4, chunk_bytes=1)
    p, q = (logits(a, b).softmax(-1) for a, b in ((x, student), (y, teacher)))
    ids = q.topk(4).indices
    p, q = (torch.cat((d.gather(1, ids), 1 - d.gather(1, ids).sum(-1, keepdim=True)), 1) for d in (p, q))
    wanted = by_hand(p, q, kind).sum()
    assert torch.allclose(found, wanted, rtol=1e-9)
    assert torch.allclose(*(torch.autograd.grad(t, x)[0] for t in (found, wanted)), rtol=1e-6, atol=1e-9)
    from_outcomes = teacher_divergence(student, x, outcomes(logits(y, teacher), 4), counted, kind=kind)
    assert torch.allclose(from_outcomes, wanted, rtol=1e-9)


def test_telling_more_tokens_apart_raises_the_bound_to_the_whole_divergence() -> None:
    (x, student), (y, teacher) = made(0, D), made(1, E)
    counted = torch.ones(N, dtype=torch.bool)
    at = [float(teacher_divergence(student, x, FromModel(y, teacher), counted, top_k=k)) for k in (1, 5, 15, V - 1)]
    whole = float(teacher_divergence(student, x, FromModel(y, teacher), counted))
    assert at == sorted(at)
    assert at[0] < 0.7 * whole
    assert at[-1] == pytest.approx(whole)  # the rest is a single token


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, student), (y, teacher) = made(0, D, bias=True), made(1, E)
    seen = []
    monkeypatch.setattr(divergence, "coarse", lambda z, ids: seen.append(len(z)) or coarse(z, ids))
    teacher_divergence(student, x, FromModel(y, teacher), torch.ones(N, dtype=torch.bool), top_k=3, chunk_bytes=1)
    assert max(seen) == 16
    assert sum(seen) == 2 * N


def test_sure_teachers_give_numbers() -> None:
    z = torch.tensor([[200.0, 0.0, -200.0, 0.0]])
    known = outcomes(z, 2)
    weight = torch.eye(4)
    for kind in KINDS:
        x = torch.zeros(1, 4, requires_grad=True)
        found = teacher_divergence(Head(weight, None, 1.0, None), x, known, torch.ones(1, dtype=torch.bool), kind=kind)
        found.backward()
        assert found.isfinite()
        assert x.grad.isfinite().all()


def test_gradients_are_in_fp32_under_bf16_autocast() -> None:
    (x, student), (y, teacher) = made(0, D), made(1, E)
    x, w = x.float().requires_grad_(), student.weight_VD.float().requires_grad_()
    known = Outcomes(*outcomes(logits(y, teacher).float(), 4))
    head, counted = Head(w, None, 1.0, None), torch.ones(N, dtype=torch.bool)
    exact = torch.autograd.grad(teacher_divergence(head, x, known, counted), (x, w))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = torch.autograd.grad(teacher_divergence(head, x, known, counted), (x, w))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert 0 < (a - b).norm() < 0.02 * a.norm()
