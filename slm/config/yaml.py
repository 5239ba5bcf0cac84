"""The resolved config as YAML that a person reads and `compose` takes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml


def dump_yaml(config: dict[str, Any], notes: Iterable[str] = ()) -> str:
    """Plain data as YAML in its own order; ``notes`` become comments at the top."""
    head = "".join(f"# {note}\n" for note in ("Resolved by slm. This file is itself a recipe.", *notes))
    return head + yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
