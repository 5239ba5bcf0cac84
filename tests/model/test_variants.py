"""Every part and option trains, in low precision too, and `torch.compile` changes nothing."""

from __future__ import annotations

import pytest
import torch

from slm.model.decoder import Decoder

from .variants import VARIANTS, ids, model_of

DOZEN = ["gqa", "window", "qk_norm full", "mla", "differential", "rglru", "rope yarn", "alibi", "series", "moe", "sandwich", "canon", "shared_ffn", "pattern windows and bases", "mtp"]  # fmt: skip
INDUCTOR = ("gqa", "window", "sandwich", "shared_ffn")
"""Compiled all the way to code, which takes a quarter of a minute each; the others are traced, differentiated and run as graphs."""
DOCS = torch.tensor([[0] * 10 + [1] * 14]).expand(2, -1)


def structured(rows: int, length: int = 24) -> torch.Tensor:
    """Rows in which each token is a function of the one before: learnable in a few steps."""
    starts = torch.randint(40, (rows, 1), generator=torch.Generator().manual_seed(0))
    steps = [starts]
    for _ in range(length):
        steps.append((3 * steps[-1] + 1) % 40)
    return torch.cat(steps, 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_thirty_steps_lower_the_loss(name: str) -> None:
    """By a quarter at least. Weights start small, as for training; the other tests want large ones."""
    model = model_of(
        name,
        **({} if name.startswith("init") else {"init": {"name": "normal", "sigma": 0.08, "scale_residual": False}}),
    )
    decoder = Decoder(model).init_weights(0)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    rows, losses = structured(8), []
    for _ in range(30):
        sums = decoder.training_loss(rows[:, :-1], rows[:, 1:])
        (sums.loss / sums.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(sums.nll / sums.count))
    assert losses[-1] < 0.75 * losses[0], losses[::6]


@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_to_bf16_changes_little(name: str) -> None:
    """The loss by less than bf16's eight bits would allow a sum of independent errors; gradients keep their weights' dtype."""
    decoder = Decoder(model_of(name, init={"name": "normal", "sigma": 0.05, "scale_residual": False})).init_weights(0)
    wanted = decoder.training_loss(ids(), ids(seed=3), docs_BT=DOCS).loss.detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder.training_loss(ids(), ids(seed=3), docs_BT=DOCS).loss
    loss.backward()
    assert float(abs(loss.detach() / wanted - 1)) < 2**-8
    for n, p in decoder.named_parameters():
        assert p.grad is not None, n
        assert p.grad.dtype == torch.float32, n
        assert p.grad.isfinite().all(), n


@pytest.mark.slow
@pytest.mark.parametrize("name", DOZEN)
def test_compiled_and_eager_agree_in_loss_and_gradients(name: str) -> None:
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        decoder = Decoder(model_of(name)).init_weights(0)

        def loss(decoder: Decoder = decoder) -> torch.Tensor:
            return decoder.training_loss(ids(), ids(seed=3), docs_BT=DOCS).loss

        backend = "inductor" if name in INDUCTOR else "aot_eager"
        value = (torch.compile(loss, backend=backend) if compiled else loss)()
        (value / 48).backward()
        results.append((value.detach(), {n: p.grad for n, p in decoder.named_parameters()}))
    (eager, wanted), (fused, got) = results
    torch.testing.assert_close(fused, eager, atol=1e-5, rtol=1e-5)
    for n, grad in wanted.items():
        torch.testing.assert_close(got[n], grad, atol=1e-5, rtol=1e-5, msg=lambda text, n=n: f"{n}: {text}")
