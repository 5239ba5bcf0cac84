"""Choosing a backend: the fastest that is installed and gives exactly the tokenizer's ids, or the one that is named."""

from __future__ import annotations

import importlib.util
from typing import Literal

from slm.config.errors import ConfigError, suggest
from slm.data.tokenizer.base import Tokenizer
from slm.data.tokenizer.encoder import Encoder, Native
from slm.data.tokenizer.fast import Fast
from slm.data.tokenizer.with_gigatoken import Gigatoken
from slm.data.tokenizer.with_tiktoken import Tiktoken

BackendName = Literal["auto", "hf", "sentencepiece", "tiktoken", "gigatoken"]
FAST: dict[str, type[Fast]] = {"gigatoken": Gigatoken, "tiktoken": Tiktoken}
"""Fastest first."""
NATIVE = ("hf", "sentencepiece")


def backend(tokenizer: Tokenizer, name: str = "auto", threads: int = 1) -> Encoder:
    """An encoder for a tokenizer that runs in exactly ``threads`` threads.

    ``auto`` takes the fastest installed backend that encodes this tokenizer exactly, and the tokenizer's own library
    if there is none. A backend that is named is taken or refused: `ConfigError` says why.
    """
    if threads < 1:
        raise ConfigError(f"threads={threads}: an encoder needs one thread or more.")
    if name == "auto":
        name = next((n for n in FAST if not why_not(tokenizer, n)), tokenizer.kind)
    elif reason := why_not(tokenizer, name):
        raise ConfigError(f"The backend {name!r} can't encode for this tokenizer: {reason}.")
    return Native(tokenizer, threads) if name == tokenizer.kind else FAST[name](tokenizer, threads)


def why_not(tokenizer: Tokenizer, name: str) -> str:
    """Why a backend can't be had for a tokenizer; empty if it can. Raises `ConfigError` for an unknown name."""
    if name in NATIVE:
        return "" if name == tokenizer.kind else f"it is read by {tokenizer.kind}, not by {name}"
    if name not in FAST:
        raise ConfigError(f"There is no tokenizer backend {name!r}. {suggest(name, ('auto', *NATIVE, *FAST))}")
    if importlib.util.find_spec(name) is None:
        return f"the package {name} isn't installed (pip install 'slm[fast]')"
    return FAST[name].why_not(tokenizer)
