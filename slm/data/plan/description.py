"""What a plan's rows depend on, by name: its hash is taken over this, and two plans are compared by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slm.config.identity import differences
from slm.data.plan.mixture import GRID, Order, Policy

if TYPE_CHECKING:
    from slm.data.plan.plan import Plan

VERSION = 2
"""Raised when the same description would give other rows."""


def describe(plan: Plan, split: str, policy: Policy, window: int, seed: int, order: Order) -> dict[str, Any]:
    """Everything that the rows depend on, by name, so that two plans can be compared field by field."""
    described: dict[str, Any] = {
        "version": VERSION,
        "split": split,
        "seq_len": plan.seq_len,
        "packing": policy,
        "window": window if policy in ("best_fit", "crop") else None,
        "eot": plan.eot,
        "seed": seed,
        "order": order.model_dump() if order.mode == "blocked" else order.mode,
        "sources": {
            s.name: {"content": s.documents.content_hash, "documents": s.index.documents, "rows": s.index.rows}
            for s in plan.sources
        },
    }
    if plan.mixture is None or plan.resolved is None:
        return described
    described["mixture"] = [
        {
            "rows": [span.first, span.last],
            "ramp": span.ramp,
            "weights": {n: w / GRID for n, w in zip(plan.names, span.weights.tolist(), strict=True) if w},
        }
        for span in plan.resolved.spans
    ]
    if plan.mixture.on_exhaust == "renormalise":  # otherwise caps end the run, and change no row before
        described["max_epochs"] = plan.mixture.max_epochs
    return described


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two plans, from their ``described``: one line per field, such as ``seq_len: 512 -> 1024``."""
    return differences(old, new)
