"""The token stores of a run: one per source, all of one tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from slm.config.errors import ConfigError
from slm.data.store import Store, StoredDocument
from slm.data.tokenizer import Tokenizer


class Corpus:
    """Stores by the names of their sources. ``cache_dir``: where their packings are kept; None keeps them in memory."""

    def __init__(self, stores: Mapping[str, Store], cache_dir: Path | None = None) -> None:
        self.stores, self.cache_dir = dict(stores), cache_dir
        first, *others = self.stores.items()
        for name, store in others:
            if store.manifest["tokenizer"]["sha256"] != first[1].manifest["tokenizer"]["sha256"]:
                raise ConfigError(
                    f"The stores of {first[0]!r} ({first[1].path}) and {name!r} ({store.path}) were made with different "
                    f"tokenizers: their ids mean different text. Make one of them again with the other's tokenizer."
                )
        self._first = first[1]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all stores."""
        return self._first.tokenizer

    @property
    def tokenizer_bytes(self) -> bytes:
        """Its file."""
        return self._first.tokenizer_bytes

    def documents(self, split: str) -> Iterator[StoredDocument]:
        """The documents of a split, source after source."""
        return chain.from_iterable(store.documents(split) for store in self.stores.values())

    def text(self, split: str) -> bytes:
        """The exact bytes of all documents of a split, joined."""
        return b"".join(store.text(split) for store in self.stores.values())

    def counts(self, split: str) -> tuple[int, int]:
        """(documents, tokens) of a split."""
        splits = [store.split(split) for store in self.stores.values()]
        return sum(map(len, splits)), sum(s.tokens for s in splits)
