"""Byte-level BPE, trained, and its degenerate case: bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from slm.config.errors import ConfigError
from slm.data.tokenizer.base import END_OF_TEXT, Tokenizer
from slm.data.tokenizer.hf import HuggingFace
from slm.data.tokenizer.hf_file import byte_alphabet
from slm.data.tokenizer.part import TokenizerPart, Trained, tokenizer
from slm.data.tokenizer.pretokenizers import PRETOKENIZERS

if TYPE_CHECKING:
    import tokenizers

PretokenizerName = Literal["qwen2", "gpt2", "llama3", "qwen35", "gpt4o", "deepseek-v3", "smollm"]


@tokenizer.register("bpe", paper="Sennrich et al. 2016, arXiv 1508.07909; byte-level: Radford et al. 2019 (GPT-2)")
class BytePairs(Trained):
    """Byte-level BPE trained on the run's own training documents."""

    pretokenizer: PretokenizerName = "qwen2"
    """How text is cut into words before merging, by the name of the model that is known for it."""

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        from tokenizers import pre_tokenizers, trainers

        inner = byte_level(self.pretokenizer, self.specials)
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab,
            special_tokens=[END_OF_TEXT, *self.specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(self.sample(texts()), trainer)
        if inner.get_vocab_size() != self.vocab:
            raise ConfigError(
                f"The training text yields only {inner.get_vocab_size()} different tokens, not tokenizer.vocab={self.vocab}. "
                f"Set tokenizer.vocab={inner.get_vocab_size()} or give it more text."
            )
        return HuggingFace(inner.to_str(pretty=True).encode("utf-8"))


@tokenizer.register("bytes")
class Bytes(TokenizerPart):
    """One token per byte: 256 of them and ``<|endoftext|>``."""

    @property
    def vocab_size(self) -> int:
        return 257

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return HuggingFace(byte_level("qwen2").to_str(pretty=True).encode("utf-8"))


def byte_level(pretokenizer: str, specials: Sequence[str] = ()) -> "tokenizers.Tokenizer":
    """An untrained byte-level BPE: first the special tokens, from id 0 (end-of-text), then the bytes; no merges."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    special = [END_OF_TEXT, *specials]
    alphabet = [c for _, c in sorted(byte_alphabet().items())]
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    splits = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        for pattern in PRETOKENIZERS[pretokenizer].patterns
    ]
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, spelled])  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(special)
    return inner
