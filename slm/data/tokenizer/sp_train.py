"""SentencePiece models, trained so that every text comes back exactly.

sentencepiece is made for lines of prose; four settings make it fit for any text: no normalisation and no space put in
front, bytes for rare characters, and documents handed over in chunks of several lines rather than line by line, so
that newlines and the indentation after them become pieces.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import pydantic

from slm.config.errors import ConfigError
from slm.data.tokenizer.base import END_OF_TEXT, Tokenizer
from slm.data.tokenizer.part import Trained, tokenizer
from slm.data.tokenizer.sp import SentencePiece

CHUNK = 4096
"""Characters handed to the trainer at a time."""
THREADS = 4
"""Of the trainer, whatever the machine has: their number decides in which order it adds up, hence the last digits."""


class _SentencePieceTraining(Trained):
    """What both kinds share."""

    model_type: ClassVar[str]
    character_coverage: float = pydantic.Field(0.9995, gt=0, le=1)
    """Share of the text's characters that get pieces of their own; the rest is spelled in bytes."""

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        import sentencepiece

        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_chunks(self.sample(texts())), model_writer=written, **self._settings()
            )
        except (RuntimeError, OSError) as error:
            raise self._refused(str(error)) from None
        return SentencePiece(written.getvalue())

    def _settings(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "vocab_size": self.vocab,
            "character_coverage": self.character_coverage,
            "byte_fallback": True,
            "split_digits": True,
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "max_sentence_length": 16 * CHUNK,
            "eos_id": 0,
            "eos_piece": END_OF_TEXT,
            "unk_id": 1,
            "bos_id": -1,
            "pad_id": -1,
            "control_symbols": list(self.specials),
            "num_threads": THREADS,
            "minloglevel": 2,
        }

    def _refused(self, message: str) -> ConfigError:
        """sentencepiece's refusal with the number that would do."""
        if most := re.search(r"<= (\d+)", message):
            return ConfigError(
                f"The training text yields only {most[1]} different tokens, not tokenizer.vocab={self.vocab}. "
                f"Set tokenizer.vocab={most[1]} or give it more text."
            )
        if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
            return ConfigError(
                f"tokenizer.vocab={self.vocab} has no room for the bytes and the text's characters. Set "
                f"tokenizer.vocab={least[1]} or more, or a smaller tokenizer.character_coverage."
            )
        if "sentences_.empty()" in message:
            return ConfigError("There is no text to train the tokenizer on.")
        return ConfigError(f"sentencepiece can't train tokenizer.vocab={self.vocab} on this text: {message}")


@tokenizer.register(
    "sp-bpe", paper="Kudo and Richardson 2018, arXiv 1808.06226; BPE: Sennrich et al. 2016, arXiv 1508.07909"
)
class SentencePieceBPE(_SentencePieceTraining):
    """SentencePiece BPE with byte fallback and single digits, trained on the run's own training documents."""

    model_type: ClassVar[str] = "bpe"


@tokenizer.register("sp-unigram", paper="Kudo 2018, arXiv 1804.10959; Kudo and Richardson 2018, arXiv 1808.06226")
class SentencePieceUnigram(_SentencePieceTraining):
    """SentencePiece unigram with byte fallback and single digits, trained on the run's own training documents."""

    model_type: ClassVar[str] = "unigram"
    sample_bytes: int = pydantic.Field(50_000_000, gt=0)
    """Train on documents up to this many bytes: training takes ten times as long as BPE's."""


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """Texts in chunks of whole lines, where lines are shorter than a chunk."""
    for text in texts:
        start = 0
        while start < len(text):
            end = start + CHUNK
            if end < len(text):
                end = text.rfind("\n", start, end) + 1 or end
            yield text[start:end]
            start = end
