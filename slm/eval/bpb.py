"""Bits per byte: the honest measure of a language model on text, whatever its tokenizer.

    bpb = sum over documents of -log2 p(document) / sum of their lengths in UTF-8 bytes

-log2 p(document) includes the end-of-text that closes it, so the figure is the size of a decodable
compression. Every token is predicted once; a document longer than the context is read in windows that
overlap, so that a token has at least ``context - stride`` tokens before it (or the whole document).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slm.config.errors import ConfigError
from slm.data.config import Data
from slm.data.corpus import Corpus
from slm.data.prepare import open_corpus
from slm.data.store import StoredDocument
from slm.data.tokenizer import tokenizer
from slm.model.decoder import Decoder
from slm.model.precision import autocast


@dataclass(frozen=True)
class BitsPerByte:
    """Bits over all documents, and what they are divided by."""

    bits: float
    bytes: int
    tokens: int
    docs: int

    @property
    def bpb(self) -> float:
        return self.bits / self.bytes


def sum_of(scores: Iterable[BitsPerByte]) -> BitsPerByte:
    """The figure over several sets of documents together: bits and bytes add up."""
    every = list(scores)
    return BitsPerByte(
        sum(s.bits for s in every),
        sum(s.bytes for s in every),
        sum(s.tokens for s in every),
        sum(s.docs for s in every),
    )


def evaluate(
    model: Decoder,
    documents: Iterable[StoredDocument],
    eot: int,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch: int = 16,
    precision: str = "fp32",
) -> BitsPerByte:
    """Bits per byte of ``documents`` under ``model``.

    Args:
        eot: the end-of-text id, which starts and ends a document.
        context: tokens per window; the model's context by default. `slm.checkpoint.Restored.context` is what it was trained on.
        stride: new tokens per window; half of the context by default.

    Raises:
        ConfigError: there are no documents, the model hasn't so long a context, or the windows don't overlap (0 < stride <= context).
    """
    context = model.config.window(context)
    stride = max(1, context // 2) if stride is None else stride
    if not 0 < stride <= context:
        raise ConfigError(f"stride={stride} must be between 1 and the context of {context}, or tokens are left out.")
    docs = list(documents)
    if not docs:
        raise ConfigError("There are no documents to evaluate on: data.heldout=0 keeps none apart.")
    device = model.embedding.weight.device
    end = np.array([eot], dtype=np.int32)
    chains = (np.concatenate((end, doc.tokens, end), dtype=np.int32, casting="unsafe") for doc in docs)
    windows = [window for chain in chains for window in _windows(chain, context, stride)]
    windows.sort(key=lambda w: len(w[0]))  # alike lengths together: little padding; the sum doesn't depend on it
    nats = 0.0
    with torch.no_grad(), autocast(device, precision):
        for group in _batches(windows, batch):
            width = max(len(tokens) for tokens, _ in group)
            tokens_BT = torch.full((len(group), width), eot)
            targets_BT = torch.full((len(group), width), -100)
            for i, (tokens, targets) in enumerate(group):
                tokens_BT[i, : len(tokens)] = torch.from_numpy(tokens)
                targets_BT[i, : len(targets)] = torch.from_numpy(targets)
            hidden_BTD = model(tokens_BT.to(device))
            nats += float(model.loss(hidden_BTD, targets_BT.to(device)).nll)
    return BitsPerByte(nats / math.log(2), sum(d.bytes for d in docs), sum(len(d.tokens) for d in docs), len(docs))


def corpus_of(config: dict[str, Any]) -> Corpus:
    """The token stores that a run was trained on, from its resolved config."""
    if "data" not in config:
        raise ConfigError("This checkpoint was imported, so it has no token store of its own. Name one with --store.")
    return open_corpus(Data(**config["data"]), tokenizer.parse(config["tokenizer"]), config["impl"]["data_dir"])


Window = tuple[np.ndarray, np.ndarray]
"""Inputs and targets."""


def _windows(chain: np.ndarray, context: int, stride: int) -> Iterator[Window]:
    """Overlapping windows; each of the chain's predictions is counted exactly once. Held-out text has tens of millions of tokens, so
    inputs are views, and targets have four bytes a token."""
    inputs, targets = chain[:-1], chain[1:]
    counted = 0
    start = 0
    while counted < len(targets):
        end = min(start + context, len(inputs))
        counts = targets[start:end].copy()
        counts[: counted - start] = -100
        yield inputs[start:end], counts
        counted = end
        start = end - context + stride if end < len(inputs) else end


def _batches(windows: list[Window], size: int) -> Iterator[list[Window]]:
    for i in range(0, len(windows), size):
        yield windows[i : i + size]
