"""Bytes to text as they come: a token may end in the middle of a character."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Hands out whole characters; what can't be decoded becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, raw: bytes) -> str:
        """Text that is complete after these bytes."""
        return self._decoder.decode(raw)

    def end(self) -> str:
        """What is left at the end."""
        return self._decoder.decode(b"", final=True)
