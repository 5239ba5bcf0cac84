"""Which arms are evaluated on other text than the control.

A run is evaluated on the held-out documents of its own sources. Bits per byte of different documents say more of the documents than of
the models, so such arms get no difference and no verdict. The tokenizer doesn't matter: it changes neither the documents nor their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from slm.run import Run
from slm.study.plan import Planned, Study
from slm.study.runner import result_of

NOT_COMPARABLE = "not comparable"
"""The verdict."""
ADVICE = (
    "score the runs on the same text (`slm eval RUN --store STORE`, if their tokenizers are the same), or give all arms the same "
    "sources and filters, and let only the weights of data.mixture differ"
)
ORDER = {"shuffle", "shuffle_seed"}
"""Curation that moves documents and chooses none."""


def unlike(study: Study, runs: Sequence[Planned]) -> dict[str, str]:
    """The arms whose held-out text isn't the control's, each with a sentence on why, and what to do.

    Finished runs say how much text they were scored on. Before there are any, the configs alone decide.
    """
    found: dict[str, str] = {}
    for arm in study.arms:
        pairs = [] if arm == study.control else list(_pairs(arm, study.control, runs))
        scored = [(a, b) for a, b in pairs if _size(a) and _size(b)]
        why = next((why for a, b in scored or pairs if (why := _difference(a, b))), None)
        if why is not None:
            found[arm] = f"{arm} and {study.control} are {NOT_COMPARABLE}: {why}; {ADVICE}."
    return found


def _pairs(arm: str, control: str, runs: Sequence[Planned]) -> Iterator[tuple[Planned, Planned]]:
    """(arm's run, control's run) of every seed."""
    base = {p.seed: p for p in runs if p.arm == control}
    return ((p, base[p.seed]) for p in runs if p.arm == arm)


def _difference(arm: Planned, control: Planned) -> str | None:
    """Why the held-out text of two runs isn't the same; None if it is, or if nothing says otherwise."""
    mine, other = _size(arm), _size(control)
    if mine and other and mine != other:
        return f"their held-out text differs, {_say(mine)} against {_say(other)}"
    a, b = arm.run, control.run
    if any(m.store for run in (a, b) for m in run.data.members.values()):
        return None  # what a ready-made store holds is known by its size alone
    # Other filters over the same source that held out as much text held out the same text.
    if _sources(a) == _sources(b) and ((mine and other) or _chosen(a) == _chosen(b)):
        return None
    return f"their held-out text is chosen differently ({', '.join(_fields(a, b))})"


def _size(planned: Planned) -> tuple[int, int] | None:
    """(documents, bytes) that a finished run was scored on."""
    text: dict[str, Any] = (result_of(planned) or {}).get("heldout") or {}
    return (text["docs"], text["bytes"]) if text else None


def _say(size: tuple[int, int]) -> str:
    return f"{size[0]:,} documents of {size[1]:,} bytes"


def _sources(run: Run) -> list[str]:
    """Where the documents come from, whatever the names and shares of the sources."""
    return sorted(m.source.model_dump_json() for m in run.data.members.values() if m.source is not None)


def _chosen(run: Run) -> list[str]:
    """Where they come from, and which are kept and held out."""
    return sorted(
        json.dumps([m.source.model_dump(mode="json"), run.data.curation(m).model_dump(mode="json", exclude=ORDER)])
        for m in run.data.members.values()
        if m.source is not None
    )


def _fields(a: Run, b: Run) -> list[str]:
    """The fields of the ``data`` section that decide it and differ."""
    curation = a.data.curation(next(iter(a.data.members.values()))).model_dump(exclude=ORDER)
    old, new = a.data.model_dump(mode="json"), b.data.model_dump(mode="json")
    return [f"data.{name}" for name in ("source", "sources", *curation) if old[name] != new[name]]
