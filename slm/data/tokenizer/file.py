"""A tokenizer that exists already, as a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic

from slm.config.errors import ConfigError, RunError
from slm.data.tokenizer import tiktoken_file
from slm.data.tokenizer.base import Tokenizer
from slm.data.tokenizer.byte_pairs import PretokenizerName
from slm.data.tokenizer.part import TokenizerPart, tokenizer
from slm.data.tokenizer.pretokenizers import PRETOKENIZERS

NAMES = ("tokenizer.json", "tokenizer.model", "*.tiktoken")
"""What is looked for in a directory, in this order."""


@tokenizer.register("file")
class FromFile(TokenizerPart):
    """A ``tokenizer.json``, a sentencepiece ``.model`` or a ``.tiktoken`` file; its contents tell which."""

    own = ("pretokenizer",)

    path: str
    """The file, or a directory with one."""
    eot: str | None = None
    """The token that ends a document, where the file has several that could: ``</s>``, ``<|im_end|>``, ..."""
    pretokenizer: PretokenizerName | None = None
    """How text is cut into words, for a .tiktoken file, which doesn't say so."""
    pattern: str | None = None
    """The same as a regular expression, for one that slm has no name for."""
    special_tokens: dict[str, int] = {}
    """Names and ids of a .tiktoken file's special tokens; none: ``<|endoftext|>`` with the first free id."""
    lossy: bool = False
    """Take a tokenizer, too, that changes text (lowercases it, drops spaces, lacks characters)."""

    @pydantic.model_validator(mode="after")
    def _one_pattern(self) -> "FromFile":
        if self.pretokenizer and self.pattern:
            raise ValueError("pretokenizer and pattern say the same thing; give one of them")
        return self

    @property
    def vocab_size(self) -> int:
        return self._read().vocab_size

    def made_of(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"path"}) | {"file": hashlib.sha256(self._bytes()).hexdigest()}

    def load(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return self._read()

    def _bytes(self) -> bytes:
        try:
            return self._file().read_bytes()
        except OSError as error:
            raise ConfigError(f"tokenizer.path: {self.path!r} can't be read ({error.strerror}).") from None

    def _read(self) -> Tokenizer:
        path = self._file()
        found = _parse(self._bytes(), str(path), self.eot, self._patterns(), tuple(self.special_tokens.items()))
        if found.loss and not self.lossy:
            raise ConfigError(
                f"{path}: this tokenizer {found.loss}, so the text doesn't come back from its tokens and bits per byte "
                "would be of another text. Take another one, or set tokenizer.lossy=true if that is what you want."
            )
        return found

    def _file(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_dir():
            return path
        for name in NAMES:
            if len(files := sorted(path.glob(name))) == 1:
                return files[0]
        raise ConfigError(f"tokenizer.path: the directory {self.path!r} has none of {', '.join(NAMES)}, or several.")

    def _patterns(self) -> tuple[str, ...]:
        if self.pretokenizer:
            return PRETOKENIZERS[self.pretokenizer].patterns
        return (self.pattern,) if self.pattern else ()


@lru_cache(maxsize=4)
def _parse(
    raw: bytes, path: str, eot: str | None, patterns: tuple[str, ...], specials: tuple[tuple[str, int], ...]
) -> Tokenizer:
    """The tokenizer of a file's contents; kept, because `FromFile.vocab_size` is asked for many times."""
    is_ranks = tiktoken_file.recognises(raw)
    if (patterns or specials) and not is_ranks:
        raise ConfigError(
            f"{path} is not a .tiktoken file: it says itself how text is cut and which tokens are special. "
            "Leave out pretokenizer, pattern and special_tokens."
        )
    if is_ranks and not patterns:
        raise ConfigError(
            f"{path} is a .tiktoken file, which doesn't say how text is cut into words. Set tokenizer.pretokenizer "
            f"to one of {', '.join(PRETOKENIZERS)}, or tokenizer.pattern to its regular expression."
        )
    try:
        if is_ranks:
            raw = tiktoken_file.to_json(raw, patterns, dict(specials))
        return Tokenizer.from_bytes(raw, eot)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        raise RunError(f"{path}: not a tokenizer file that slm reads ({error}).") from None
