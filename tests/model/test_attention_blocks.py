"""Queries taken block by block give what all of them at once give, and cost less."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from slm.model.attention import plain
from slm.model.attention.backends import Scores, attend
from slm.model.sequence import Mask

B, H, G, T, K = 2, 4, 2, 23, 8
DOCS = torch.tensor([[0] * 9 + [1] * 14, [0] * 23])
CASES = {
    "causal": ({}, None),
    "documents": ({}, DOCS),
    "window": ({"window": 5}, None),
    "window of one block": ({"window": 4}, DOCS),
    "a token alone": ({"window": 1}, None),
    "cap": ({"softcap": 2.0}, DOCS),
    "slopes": ({"slopes_H": torch.tensor([0.5, 0.25, 0.1, 0.0])}, DOCS),
    "sinks": ({"sinks_H": torch.tensor([0.3, -0.2, 0.0, 1.0])}, DOCS),
}


def attended(wish: dict[str, object], docs: Tensor | None) -> tuple[list[Tensor], int]:
    """Output and gradients of queries, keys and values; FLOPs."""
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, n, T, K, generator=made, dtype=torch.float64).requires_grad_() for n in (H, G, G))
    with FlopCounterMode(display=False) as counter:
        out = attend(q, k, v, Mask(T, q.device, docs), Scores(0.3, **wish), backend="matmul")
    out.backward(torch.randn(out.shape, generator=made, dtype=torch.float64))
    return [out, *(t.grad for t in (q, k, v) if t.grad is not None)], counter.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, all_of_it = attended(*CASES[name])
    monkeypatch.setattr(plain, "MATMUL_BLOCK", 4)
    blocks, less = attended(*CASES[name])
    assert len(blocks) == 4
    torch.testing.assert_close(blocks, whole, rtol=1e-9, atol=1e-9)
    assert less < 0.7 * all_of_it
    if CASES[name][0].get("window") == 1:
        assert less < 0.2 * all_of_it
