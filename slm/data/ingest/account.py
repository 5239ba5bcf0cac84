"""The manifest of a store, however it was made: totals, where every record went, and nothing without documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import slm
from slm.config.errors import ConfigError
from slm.data.store import FORMAT
from slm.data.store import manifest as manifests
from slm.data.store.checked import BLOCK
from slm.data.tokenizer import Tokenizer


def manifest_of(
    tokenizer: Tokenizer,
    dtype: np.dtype[Any],
    splits: dict[str, list[dict[str, Any]]],
    *,
    made_of: dict[str, Any],
    read: int,
    dropped: Mapping[str, int],
    heldout: float,
) -> dict[str, Any]:
    """The manifest of a store with these shards (entries by split).

    Raises:
        ConfigError: no training documents, or none held out although a share of them should be.
        RuntimeError: records that are neither stored nor dropped under a rule (a bug).
    """
    dropped = {rule: n for rule, n in sorted(dropped.items()) if n}
    kept = sum(entry["docs"] for entries in splits.values() for entry in entries)
    if read != kept + sum(dropped.values()):
        raise RuntimeError(f"{read} records in, {kept} documents stored, {dropped} dropped: some are lost")
    if not splits["train"]:
        raise ConfigError(f"There are no training documents (read: {read}, dropped: {dropped}).")
    if heldout and not splits["heldout"]:
        raise ConfigError(f"heldout={heldout} of {kept} documents leaves none for evaluation. Raise it, or set 0.")
    entry = {"file": tokenizer.file_name, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    return {
        "format": FORMAT,
        "slm": slm.__version__,
        "dtype": dtype.str,
        "block": BLOCK,
        "tokenizer": entry,
        "made_of": made_of,
        "accounting": {"read": read, "kept": kept, "dropped": dropped},
        "splits": splits,
        "content_sha256": manifests.content_hash(entry, splits),
    }
