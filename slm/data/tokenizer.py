"""Tokenizers: what is asked for (`TokenizerPart`) and what runs (`Tokenizer`).

All of them are byte-level, so every text has exactly one lossless encoding: ``decode_bytes(encode(text))``
is the text. Documents carry no special tokens; ``<|endoftext|>`` is put between them by the packer. A
document that *contains* the characters ``<|endoftext|>`` gets ordinary tokens for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pydantic

from slm.config.errors import ConfigError, RunError
from slm.config.registry import Part, Registry

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"

PRETOKENIZERS = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""Splitting patterns that other runtimes (llama.cpp, vLLM) know by name. ``qwen2`` takes digits one by one."""


class Tokenizer:
    """A byte-level BPE tokenizer at work. ``eot_id`` ends (and, for the model, starts) a document."""

    def __init__(self, inner: "tokenizers.Tokenizer") -> None:
        eot = inner.token_to_id(END_OF_TEXT)
        if eot is None:
            raise ConfigError(f"The tokenizer has no {END_OF_TEXT} token, which slm puts between documents.")
        inner.encode_special_tokens = True  # literal "<|endoftext|>" in a document is text, not the special id
        self.inner, self.eot_id, self.vocab_size = inner, int(eot), int(inner.get_vocab_size())

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Tokenizer":
        """Read the contents of a ``tokenizer.json``."""
        import tokenizers

        return cls(tokenizers.Tokenizer.from_str(raw.decode("utf-8")))

    def to_bytes(self) -> bytes:
        """The contents of ``tokenizer.json``."""
        return self.inner.to_str(pretty=True).encode("utf-8")

    @property
    def sha256(self) -> str:
        """Hash of ``tokenizer.json``."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens. Raises `ConfigError` for text that isn't valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"The text isn't valid UTF-8 (at character {error.start}), so it can't be tokenised."
            ) from None
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, in parallel threads; the same as one by one."""
        return [e.ids for e in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes behind ids; special tokens give none."""
        table = self._bytes_of
        return b"".join(table[int(i)] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no whole character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Length in bytes of every token, int64 of shape (vocab,). Special tokens have 0."""
        return np.array([len(b) for b in self._bytes_of], dtype=np.int64)

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        special = {i for i, token in self.inner.get_added_tokens_decoder().items() if token.special}
        char_to_byte = {c: b for b, c in _byte_alphabet().items()}
        table = []
        for i in range(self.vocab_size):
            token = self.inner.id_to_token(i)
            if token is None or i in special:
                table.append(b"")
                continue
            try:
                table.append(bytes(char_to_byte[c] for c in token))
            except KeyError:
                raise ConfigError(
                    f"Token {i} ({token!r}) is not written in the byte-level alphabet; slm reads byte-level BPE tokenizers."
                ) from None
        return table


class TokenizerPart(Part):
    """A tokenizer, as asked for."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, known before anything is trained."""
        raise NotImplementedError

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        """Make the tokenizer. ``texts`` gives the training documents, to tokenizers that learn from them."""
        raise NotImplementedError


tokenizer = Registry("tokenizer", TokenizerPart)
TokenizerSlot = Annotated[TokenizerPart, tokenizer.field()]


@tokenizer.register("bpe", paper="Sennrich et al. 2016, arXiv 1508.07909; byte-level: Radford et al. 2019 (GPT-2)")
class BytePairs(TokenizerPart):
    """Byte-level BPE trained on the run's own training documents."""

    vocab: int = pydantic.Field(4096, ge=257)
    """Size of the vocabulary, the 256 bytes and ``<|endoftext|>`` included."""
    pretokenizer: Literal["qwen2", "gpt2"] = "qwen2"
    sample_bytes: int = pydantic.Field(200_000_000, gt=0)
    """Train on documents up to this many characters."""

    @property
    def vocab_size(self) -> int:
        return self.vocab

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        import tokenizers
        from tokenizers import pre_tokenizers, trainers

        inner = _byte_level(self.pretokenizer)
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(_sample(texts(), self.sample_bytes), trainer)
        if inner.get_vocab_size() != self.vocab:
            raise ConfigError(
                f"The training text yields only {inner.get_vocab_size()} different tokens, not tokenizer.vocab={self.vocab}. "
                f"Set tokenizer.vocab={inner.get_vocab_size()} or give it more text."
            )
        assert isinstance(inner, tokenizers.Tokenizer)
        return Tokenizer(inner)


@tokenizer.register("bytes")
class Bytes(TokenizerPart):
    """One token per byte: 256 of them and ``<|endoftext|>``."""

    @property
    def vocab_size(self) -> int:
        return 257

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return Tokenizer(_byte_level("qwen2"))


@tokenizer.register("file")
class FromFile(TokenizerPart):
    """A byte-level ``tokenizer.json`` (Hugging Face tokenizers)."""

    path: str

    @property
    def vocab_size(self) -> int:
        return self._read().vocab_size

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return self._read()

    def _read(self) -> Tokenizer:
        try:
            raw = Path(self.path).expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(f"tokenizer.path: {self.path!r} can't be read ({error.strerror}).") from None
        try:
            return Tokenizer.from_bytes(raw)
        except ConfigError:
            raise
        except Exception as error:
            raise RunError(f"{self.path}: not a tokenizer.json that the tokenizers library reads ({error}).") from None


def _byte_level(pretokenizer: str) -> "tokenizers.Tokenizer":
    """An untrained byte-level BPE: id 0 is end-of-text, ids 1 to 256 are the bytes, no merges."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = [c for _, c in sorted(_byte_alphabet().items())]
    vocab = {END_OF_TEXT: 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    split = pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZERS[pretokenizer]), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's bijection from bytes to printable characters (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for shift, byte in enumerate(b for b in range(256) if b not in table):
        table[byte] = chr(256 + shift)
    return table


def _sample(texts: Iterable[str], limit: int) -> Iterable[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(text)
        if taken >= limit:
            return
