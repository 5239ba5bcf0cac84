"""Teachers. Both answer a batch with tensors, outside of the module that is trained; `DistillLoss` compares with them.

A teacher is no ``nn.Module``: nothing wraps, shards, counts or saves its weights, and compile sees only tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from slm.config.errors import ConfigError
from slm.data.loader import Batch
from slm.model.decoder import Decoder
from slm.model.divergence import FromModel, Head, Outcomes
from slm.train.distill.cache import TeacherCache, as_tensors, fewer
from slm.train.given import Given, open_given, same_tokenizer, tokenizer_at

if TYPE_CHECKING:
    from slm.data.corpus import Corpus
    from slm.data.plan import Plan
    from slm.run import Run


class Teacher(Protocol):
    """Something that knows what comes next."""

    def answer(self, batch: Batch) -> tuple[Tensor, ...]:
        """What it says of a batch that is on the device."""
        ...

    def known(self, answer: tuple[Tensor, ...]) -> FromModel | Outcomes:
        """The same in the words of `slm.model.divergence`."""
        ...


class OnlineTeacher:
    """A model that reads every batch before the student does, under the caller's autocast. Costs a forward pass per step."""

    def __init__(self, model: Decoder) -> None:
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def answer(self, batch: Batch) -> tuple[Tensor, ...]:
        """Its head's inputs, (B, T, E). Logits come a chunk at a time, where they are compared."""
        hidden_BTE = self.model(batch.tokens_BT, positions_BT=batch.positions_BT, docs_BT=batch.docs_BT)
        return (self.model.embedding.features(hidden_BTE),)

    def known(self, answer: tuple[Tensor, ...]) -> FromModel:
        return FromModel(answer[0].flatten(0, -2), Head.of(self.model.embedding))


class CachedTeacher:
    """A cache that is read by the rows' numbers."""

    def __init__(self, cache: TeacherCache, top_k: int) -> None:
        self.cache, self.top_k = cache, top_k

    def answer(self, batch: Batch) -> tuple[Tensor, ...]:
        """Ids (B x T, k) and log-probabilities (B x T, k + 1)."""
        known = self.cache.read(batch.rows)
        if self.top_k < self.cache.layout.top_k:
            known = fewer(known, self.top_k)
        return as_tensors(known, batch.tokens_BT.device)

    def known(self, answer: tuple[Tensor, ...]) -> Outcomes:
        return Outcomes(*answer)


def open_teacher(run: "Run", corpus: "Corpus", path: str, expected: str | None, device: torch.device) -> OnlineTeacher:
    """Load a teacher for a run.

    Raises:
        ConfigError: other weights than ``expected``, or it can't teach this student.
        RunError: a damaged checkpoint.
    """
    given = open_given(path, expected, "train.distill.teacher", device=device)
    _check_tokenizer(given, corpus)
    theirs, ours = given.model.config, run.model
    if theirs.vocab_ != ours.vocab_:
        raise ConfigError(
            f"The teacher {given.path} has a vocabulary of {theirs.vocab_} tokens and the student one of {ours.vocab_}: they must give "
            f"probabilities to the same tokens. Set model.vocab={theirs.vocab_}."
        )
    if theirs.context is not None and theirs.context < run.data.seq_len:
        raise ConfigError(
            f"The teacher {given.path} was trained on {theirs.context} tokens of context, but data.seq_len is {run.data.seq_len}. Lower "
            f"data.seq_len to {theirs.context} or take another teacher."
        )
    return OnlineTeacher(given.model)


def open_cache(run: "Run", corpus: "Corpus", plan: "Plan", rows: int) -> CachedTeacher:
    """Open ``train.distill.cache`` for a run that reads ``rows`` rows.

    Raises:
        ConfigError: it is of another teacher, plan, tokenizer or temperature, or has too few tokens or rows.
    """
    distill = run.train.distill
    assert distill is not None
    assert distill.cache is not None
    assert distill.top_k is not None
    cache = TeacherCache(distill.cache)
    wanted = {
        "teacher": distill.teacher_hash,
        "plan": plan.hash,
        "tokenizer": corpus.tokenizer.sha256,
        "vocab": run.model.vocab_,
        "seq_len": run.data.seq_len,
        "temperature": distill.temperature,
    }
    for what, value in wanted.items():
        if cache.header[what] != value:
            raise ConfigError(
                f"train.distill.cache={distill.cache} was made with another {what} ({cache.header[what]}) than this run's ({value}). Make a "
                f"cache for this run with `slm distill cache`, or leave train.distill.cache out."
            )
    for what, has, needs in (("top_k", cache.layout.top_k, distill.top_k), ("rows", cache.layout.rows, rows)):
        if has < needs:
            raise ConfigError(
                f"train.distill.cache={distill.cache} has {what}={has:,}, but the run needs {needs:,}. Make a larger one."
            )
    return CachedTeacher(cache, distill.top_k)


def _check_tokenizer(given: Given, corpus: "Corpus") -> None:
    """Raise `ConfigError` unless both models' ids mean the same text."""
    ours = corpus.tokenizer_bytes
    if given.tokenizer is None:
        raise ConfigError(
            f"The teacher {given.path} came without a tokenizer, so nothing says that its ids mean what the student's do. Put its tokenizer.json "
            f"beside its weights and import it again."
        )
    if not same_tokenizer(given.tokenizer, ours):
        stores = ", ".join(str(store.path) for store in corpus.stores.values())
        raise ConfigError(
            f"The teacher {given.path} has another tokenizer than the student's text ({stores}): their ids mean different text. Tokenise the "
            f"text with the teacher's: tokenizer=file tokenizer.path={tokenizer_at(given.path)}."
        )
