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


@pytest.mark.parametrize("name", ["gqa", "mla", "differential", "rglru", "canon"])
@torch.no_grad()
def test_documents_are_apart_whatever_their_positions(name: str) -> None:
    """The numbers of the documents decide, also where positions run on."""
    model, tokens = decoder_of(name), ids()
    other = tokens.clone()
    other[:, FIRST] = ids(seed=1)[:, FIRST]
    a, b = (model(t, docs_BT=DOCS) for t in (tokens, other))
    torch.testing.assert_close(a[:, 7:], b[:, 7:], rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n.startswith("mtp")])
@torch.no_grad()
def test_the_loss_of_packed_documents_is_the_sum_of_theirs(name: str) -> None:
    """Further predictions end with the document: the tokens behind it are another's and count nothing."""
    model, tokens, targets = decoder_of(name), ids(), ids(seed=3)
    alone = [model.training_loss(tokens[:, d], targets[:, d]).loss for d in (FIRST, MIDDLE, slice(16, 24))]
    packed = model.training_loss(tokens, targets, positions_BT=POSITIONS, docs_BT=DOCS).loss
    torch.testing.assert_close(packed, sum(alone), atol=0, rtol=1e-5)
