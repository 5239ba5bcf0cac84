"""Nothing leaks: not across documents, not from the future, for every part and option, on every backend."""

from __future__ import annotations

import pytest
import torch

from .variants import FUSED, VARIANTS, decoder_of, ids

CASES = [(name, "matmul") for name in VARIANTS] + [(name, "sdpa") for name in FUSED]
DOCS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 8]).expand(2, -1)
POSITIONS = torch.tensor([[*range(7), *range(9), *range(8)]]).expand(2, -1)
FIRST, MIDDLE = slice(0, 7), slice(7, 16)


@pytest.mark.parametrize(("name", "backend"), CASES)
@torch.no_grad()
def test_nothing_leaks_across_documents_or_from_the_future(name: str, backend: str) -> None:
    model, tokens = decoder_of(name, backend), ids()
    other, later = tokens.clone(), tokens.clone()
    other[:, FIRST] = ids(seed=1)[:, FIRST]
    later[:, 12:] = ids(seed=2)[:, 12:]
    a, b, c = (model.logits(model(t, positions_BT=POSITIONS, docs_BT=DOCS)) for t in (tokens, other, later))
    # Same shapes, same kernels, same order of sums: what is masked contributes exact zeros. Experts that see other tokens
    # multiply matrices of other shapes, and may round differently.
    slack = 1e-6 if "moe" in name else 0.0
    torch.testing.assert_close(a[:, 7:], b[:, 7:], rtol=slack, atol=slack)
    torch.testing.assert_close(a[:, :12], c[:, :12], rtol=slack, atol=slack)
    assert (a[:, FIRST] - b[:, FIRST]).abs().max() > 1e-3  # the test can fail: the first document did change
    assert (a[:, 12:] - c[:, 12:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_packed_document_equals_the_document_alone(name: str) -> None:
    model, tokens = decoder_of(name), ids()
    packed = model(tokens, positions_BT=POSITIONS, docs_BT=DOCS)
    torch.testing.assert_close(packed[:, MIDDLE], model(tokens[:, MIDDLE]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n.startswith("mtp")])
def test_no_target_is_predicted_across_documents(name: str) -> None:
    """The further predictions of the first document's last tokens would be of the second's: they count nothing."""
    model, tokens = decoder_of(name), ids()
    targets = tokens.roll(-1, 1)
    targets[:, [6, 15, 23]] = -100
    other = targets.clone()
    other[:, MIDDLE] = ids(seed=3)[:, MIDDLE]
    only = torch.where(DOCS == 0, targets, -100)
    both = [torch.where(DOCS == 0, t, -100) for t in (targets, other)]
    a, b = (model.training_loss(tokens, t, positions_BT=POSITIONS, docs_BT=DOCS).loss for t in both)
    assert a == b == model.training_loss(tokens, only, positions_BT=POSITIONS, docs_BT=DOCS).loss
