from __future__ import annotations

import gzip
import math

import numpy as np
import pytest
import torch

from slm.config.errors import ConfigError
from slm.data.store import StoredDocument
from slm.eval.baselines import compressors
from slm.eval.bpb import _windows, evaluate
from slm.model.config import Model
from slm.model.decoder import Decoder

MODEL = (
    Decoder(Model(dim=32, layers=2, vocab=40, context=16, init={"name": "normal", "sigma": 0.2})).init_weights(0).eval()
)
RNG = np.random.default_rng(0)
DOCS = [StoredDocument(str(n), RNG.integers(1, 40, size=n), 3 * n) for n in (1, 5, 15, 16, 17, 40, 100)]


@pytest.mark.parametrize("context", [8, 16])
@pytest.mark.parametrize("length", [2, 8, 9, 16, 17, 50])
def test_windows_count_every_prediction_once_with_enough_context(length: int, context: int) -> None:
    chain = np.arange(length)
    counted = []
    for inputs, targets in _windows(chain, context, context // 2):
        assert len(inputs) == len(targets) <= context
        for i, target in enumerate(targets):
            if target != -100:
                assert target == inputs[i] + 1
                counted.append(target)
                assert i >= min(target - 1, context // 2 - 1)
    assert counted == chain[1:].tolist()


def test_short_documents_against_a_direct_sum() -> None:
    total = 0.0
    short = [d for d in DOCS if len(d.tokens) < 16]
    for doc in short:
        chain = torch.tensor([0, *doc.tokens.tolist(), 0])
        with torch.no_grad():
            logp = MODEL.logits(MODEL(chain[None, :-1]))[0].log_softmax(-1)
        total -= float(logp.gather(1, chain[1:, None]).sum())
    score = evaluate(MODEL, short, 0)
    assert score.bits == pytest.approx(total / math.log(2), rel=1e-5)
    assert score.bpb == score.bits / sum(d.bytes for d in short)
    assert (score.docs, score.tokens) == (3, 21)


def test_batch_size_does_not_matter() -> None:
    scores = [evaluate(MODEL, DOCS, 0, batch=b).bits for b in (1, 3, 64)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-6)


def test_a_uniform_model_has_the_entropy_of_its_vocabulary() -> None:
    flat = Decoder(Model(dim=32, layers=1, vocab=40, context=16)).init_weights(0)
    torch.nn.init.zeros_(flat.embedding.weight)
    predictions = sum(len(d.tokens) + 1 for d in DOCS)
    assert evaluate(flat, DOCS, 0).bits == pytest.approx(predictions * math.log2(40), rel=1e-5)


def test_nothing_to_evaluate_on_and_windows_with_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match="no documents"):
        evaluate(MODEL, [], 0)
    for context in (1, 17):
        with pytest.raises(ConfigError, match=r"context=\d+ must be between 2 and the model's context of 16"):
            evaluate(MODEL, DOCS, 0, context=context)
    for stride in (0, 17):
        with pytest.raises(ConfigError, match="stride="):
            evaluate(MODEL, DOCS, 0, stride=stride)


def test_compressors_are_the_command_line_tools() -> None:
    raw = b"the same words again and again, " * 400
    found = compressors(raw)
    assert found["gzip -9"] == pytest.approx(8 * len(gzip.compress(raw, 9)) / len(raw))
    assert set(found) == {"gzip -9", "xz -9"}
