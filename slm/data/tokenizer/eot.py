"""Which token ends a document, where a file doesn't use slm's own name for it."""

from __future__ import annotations

from collections.abc import Iterable

from slm.config.errors import ConfigError, suggest
from slm.data.tokenizer.base import END_OF_TEXT

COMMON = (
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "<|end_of_document|>",
    "<|endofdocument|>",
    "<|eos|>",
    "<EOS>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
)
"""Other projects' names. Two of them in one file (say, a chat turn's end as well) are one too many to guess."""


def find_eot(special: Iterable[str], all_tokens: Iterable[str], named: str | None = None) -> str:
    """The end-of-text token's name: ``named``, or slm's own, or the only common one among the special tokens.

    Raises `ConfigError` if there is no such token, or none that is beyond doubt.
    """
    special = list(special)
    if named is not None:
        tokens = set(all_tokens)
        if named not in tokens:
            raise ConfigError(f"The tokenizer has no token {named!r}. {suggest(named, special)}")
        return named
    if END_OF_TEXT in special:
        return END_OF_TEXT
    found = [name for name in COMMON if name in special]
    if len(found) == 1:
        return found[0]
    what = f"several that could end a document ({', '.join(found)})" if found else f"no {END_OF_TEXT} token"
    listed = ", ".join(special[:12]) + (", ..." if len(special) > 12 else "")
    raise ConfigError(
        f"The tokenizer has {what}. Name the token that slm shall put between documents: set tokenizer.eot "
        f"(--eot). Special tokens: {listed or 'none'}."
    )
