"""Tokenizers that write a space as ``▁`` (U+2581) and rare characters as byte tokens ``<0xE2>`` (SentencePiece's way).

Two things keep such a tokenizer from being lossless, and both are undone here. A text that contains a real ``▁``
would come back with a space: it is spelled in byte tokens instead. And models of the Llama 2 kind put a space
before every text: `Tokenizer.prefix` says so, and decoding takes it off again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from slm.data.tokenizer.base import UTF8_BYTES

MARK = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_of(token: str) -> int | None:
    """The byte that a token such as ``<0x0A>`` stands for."""
    match = _BYTE.fullmatch(token)
    return int(match[1], 16) if match else None


def bytes_of(token: str, *, fallback: bool) -> bytes:
    """The bytes of a token; ``fallback``: tokens such as ``<0x0A>`` are bytes."""
    byte = byte_of(token) if fallback else None
    return token.replace(MARK, " ").encode() if byte is None else bytes([byte])


def missing_bytes(ids: Mapping[str, int]) -> list[int]:
    """Bytes of UTF-8 that the vocabulary can't spell: neither as a byte token nor, for ASCII, as a character."""
    return [
        b
        for b in sorted(UTF8_BYTES)
        if f"<0x{b:02X}>" not in ids and (b >= 0x80 or (MARK if b == 0x20 else chr(b)) not in ids)
    ]


def split(text: str) -> list[str]:
    """The pieces of a text between its real ``▁``."""
    return text.split(MARK)
