"""Hugging Face ``tokenizer.json`` at work: byte-level BPE, and SentencePiece models in that format."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import pairwise
from typing import ClassVar

import numpy as np

from slm.config.errors import ConfigError
from slm.data.tokenizer import hf_file, metaspace
from slm.data.tokenizer.base import Tokenizer, encode_pieces, spread
from slm.data.tokenizer.eot import find_eot
from slm.data.tokenizer.pretokenizers import name_of


class HuggingFace(Tokenizer):
    """A ``tokenizer.json`` whose tokens have exact bytes. Only added tokens marked special are special."""

    kind: ClassVar[str] = "hf"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(self, raw: bytes, eot: str | None = None) -> None:
        import tokenizers

        spec = json.loads(raw)
        if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
            raise ValueError("it has no model")
        self.alphabet = hf_file.alphabet(spec)
        ids = hf_file.vocabulary(spec)
        self.eot = find_eot(hf_file.special_tokens(spec), ids, eot or hf_file.marked_eot(spec))
        if eot is not None and not _says(spec, ids, eot):
            spec = hf_file.with_eot(spec, eot, ids[eot])
            raw = json.dumps(spec, ensure_ascii=False, indent=2).encode("utf-8")
        self.raw, self.spec, self.ids = raw, spec, ids
        self.vocab_size, self.eot_id = max(ids.values()) + 1, ids[self.eot]
        self.special_ids = frozenset(ids[t] for t in hf_file.special_tokens(spec))
        self.loss, self.normal_form = hf_file.losses(spec, self.alphabet)
        self.producible = hf_file.producible_specials(spec)
        working, prefixed = hf_file.working(spec)
        self.prefix = b" " if prefixed else b""
        self._mark: list[int] | None = None
        if self.alphabet == "metaspace" and spec["model"].get("byte_fallback") and not metaspace.missing_bytes(ids):
            self._mark = [ids[f"<0x{b:02X}>"] for b in metaspace.MARK.encode()]
        self.inner = tokenizers.Tokenizer.from_str(json.dumps(working))
        self.inner.encode_special_tokens = True  # literal "<|endoftext|>" in a document is text, not the special id

    @classmethod
    def recognises(cls, raw: bytes) -> bool:
        return raw.lstrip()[:1] == b"{"

    @property
    def pretokenizer(self) -> str | None:
        """The name in `PRETOKENIZERS` of how a byte-level file cuts text, None if it has none."""
        return name_of(hf_file.split_patterns(self.spec) or ()) if self.alphabet == "bytes" else None

    def _encode(self, texts: Sequence[str], threads: int | None) -> list[list[int]]:
        run = partial(self._run, threads=threads)
        if self._mark is not None:
            run = partial(encode_pieces, split=metaspace.split, joint=self._mark, encode=run)
        if self.producible:  # the model would make the special token itself: cut its characters apart
            run = partial(encode_pieces, split=self._apart, joint=(), encode=run)
        prefix = self.prefix.decode()
        return run([prefix + text if text else "" for text in texts] if prefix else texts)

    def _apart(self, text: str) -> list[str]:
        cuts = [0, *(m.start() + 1 for m in re.finditer("|".join(map(re.escape, self.producible)), text)), len(text)]
        return [text[a:b] for a, b in pairwise(cuts)] if len(cuts) > 2 else [text]

    def _run(self, texts: Sequence[str], threads: int | None) -> list[list[int]]:
        if threads is None:
            return self._ids(texts)
        with _without_pool():
            # A single thread isn't this one, either: another has a heap of its own with nothing but encodings in it, and
            # the library, which allocates for every word, is a tenth faster there than among the main thread's documents.
            return self._ids(texts) if len(texts) < 2 else spread(texts, threads, self._ids)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def bytes_of(self) -> list[bytes]:
        return hf_file.token_bytes(self.spec, self.alphabet, self.vocab_size)

    @cached_property
    def fallback(self) -> np.ndarray:
        if self.alphabet == "bytes":
            return super().fallback
        flags = np.zeros(self.vocab_size, dtype=bool)
        flags[[i for token, i in self.ids.items() if metaspace.byte_of(token) is not None]] = True
        return flags


def _says(spec: hf_file.Spec, ids: dict[str, int], eot: str) -> bool:
    """Whether a file says by itself that ``eot`` ends a text."""
    special = hf_file.special_tokens(spec)
    try:
        return eot in special and find_eot(special, ids, hf_file.marked_eot(spec)) == eot
    except ConfigError:
        return False


_POOL = "TOKENIZERS_PARALLELISM"
_lock = threading.Lock()
_inside = 0
_before: str | None = None


@contextmanager
def _without_pool() -> Iterator[None]:
    """Encode on the threads that call: the library reads this variable at every call, and has no other switch."""
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = os.environ.get(_POOL)
            os.environ[_POOL] = "false"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _before is None:
                del os.environ[_POOL]
            elif _inside == 0:
                os.environ[_POOL] = str(_before)
