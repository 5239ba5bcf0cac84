"""The slot for tokenizers: what is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import pydantic

from slm.config.registry import Part, Registry
from slm.data.tokenizer.base import END_OF_TEXT, Tokenizer, refuse_broken

SPECIAL_NAME = re.compile(r"[<\[][\w|.:/+-]*[a-zA-Z0-9][\w|.:/+-]*[>\]]", re.ASCII)
"""Brackets around letters. No pre-tokenizer keeps that together, so no training can learn it as an ordinary token."""


class TokenizerPart(Part):
    """A tokenizer, as asked for."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, known before anything is trained."""
        raise NotImplementedError

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        """Make the tokenizer. ``texts`` gives the training documents, to tokenizers that learn from them."""
        raise NotImplementedError

    def made_of(self) -> dict[str, Any]:
        """What decides its ids, as plain data: files by their contents, wherever they lie."""
        return self.model_dump(mode="json")


tokenizer = Registry("tokenizer", TokenizerPart)
TokenizerSlot = Annotated[TokenizerPart, tokenizer.field()]


class Trained(TokenizerPart):
    """A tokenizer that learns its vocabulary from a sample of the run's own training documents."""

    vocab: int = pydantic.Field(4096, ge=257)
    """Size of the vocabulary, the 256 bytes and all special tokens included."""
    specials: tuple[str, ...] = ()
    """Names of further special tokens, such as ``<|im_start|>``, for later training stages; no text encodes to them."""
    sample_bytes: int = pydantic.Field(200_000_000, gt=0)
    """Train on documents up to this many bytes. Memory and time grow with it, the vocabulary's quality soon doesn't."""
    document_chars: int = pydantic.Field(1_000_000, gt=0)
    """Take no more than this many characters of one document: a giant one would be most of the sample."""
    stride: int = pydantic.Field(1, ge=1)
    """Take one document in so many, so that a small sample isn't the beginning of a sorted source."""

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @pydantic.field_validator("specials")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not SPECIAL_NAME.fullmatch(name):
                raise ValueError(
                    f"the special token {name!r} could occur in text as an ordinary token; write letters in brackets, such as <|{re.sub(r'[^A-Za-z0-9]', '', name) or 'name'}|>"
                )
        if len({END_OF_TEXT, *names}) <= len(names):
            raise ValueError(f"special tokens are named once each, and {END_OF_TEXT} is there always")
        return names

    def sample(self, texts: Iterable[str]) -> Iterator[str]:
        """The documents to train on, cut to what the fields allow."""
        left = self.sample_bytes
        for number, text in enumerate(texts):
            if number % self.stride:
                continue
            refuse_broken(text)
            raw = text[: self.document_chars].encode("utf-8")
            yield raw[:left].decode("utf-8", errors="ignore")
            left -= len(raw)
            if left <= 0:
                return


def interleaved(sources: Sequence[Iterable[str]]) -> Iterator[str]:
    """Documents of several sources in turn, so that a sample has some of all; a source that ends leaves the round."""
    turns = [iter(texts) for texts in sources]
    while turns:
        for texts in list(turns):
            try:
                yield next(texts)
            except StopIteration:
                turns.remove(texts)
