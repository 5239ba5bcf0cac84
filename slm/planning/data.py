"""What a run draws from its sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slm.config.errors import NoSuchText, SlmError
from slm.data.config import Member
from slm.data.plan import Horizon
from slm.data.plan.of_corpus import plan_of
from slm.data.plan.stages import resolve_mixture, spans_of
from slm.data.plan.timeline import NEVER
from slm.data.prepare import from_before, missing, open_corpus, ready_made, store_paths
from slm.run import Run
from slm.train.course import Course


def sources_of(run: Run, course: Course) -> list[dict[str, Any]]:
    """What the run draws from each of its sources, and how often that goes through it.

    ``tokens`` and ``epochs`` are those of the store, None where it is yet to be made. ``published_tokens`` is what the source's maker
    says of its size.
    """
    wanted = _wanted(run, course)
    listed: list[dict[str, Any]] = [
        {
            "source": name, "store": None, "tokens": None, "epochs": None, "wanted_tokens": wanted[name],
            "published_tokens": member.source.published_tokens() if member.source is not None else None,
            "missing": _why_absent(run, member),
        }
        for name, member in run.data.members.items()
    ]  # fmt: skip
    for entry in listed:  # a ready-made store is looked at first by a run, too
        if run.data.members[entry["source"]].source is None and not entry["missing"]:
            entry["missing"] = _why_unfit(run, entry["source"])
    if any(entry["missing"] for entry in listed):  # which store would be made of a text depends on the text
        for entry in listed:
            entry["missing"] = entry["missing"] or "its text is here, but not that of the other sources"
        return listed
    try:
        paths = store_paths(run.data, run.tokenizer, run.impl.data_dir)
        absent = missing(run.data, paths)
    except NoSuchText as error:  # some of it is gone, and the rest has changed
        return [entry | {"missing": str(error)} for entry in listed]
    for entry in listed:
        entry["store"] = str(paths[entry["source"]])
        if entry["source"] in absent:
            entry["missing"] = "not tokenised yet; `slm train` does it, or `slm data tokenize`"
    if absent:
        for entry in listed:
            entry["missing"] = entry["missing"] or "its tokens are there, but not those of the other sources"
        return listed
    horizon = _horizon(run, course)
    plan = plan_of(open_corpus(run.data, run.tokenizer, run.impl.data_dir), run.data, horizon=horizon)
    drawn = dict(zip(plan.names, plan.drawn(horizon.rows or 0).tolist(), strict=True))
    by_name = {source.name: source for source in plan.sources}
    for entry in listed:
        index = by_name[entry["source"]].index
        entry |= {"tokens": index.kept, "epochs": drawn[entry["source"]] / index.rows}
    return listed


def _why_unfit(run: Run, name: str) -> str | None:
    """Why a run would refuse a ready-made store; None if it wouldn't, or if it lies behind a URL."""
    store = str(run.data.members[name].store)
    try:
        if "://" not in store:
            ready_made(store, run.tokenizer, run.impl.data_dir)
    except SlmError as error:
        return str(error)
    return None


def _why_absent(run: Run, member: Member) -> str | None:
    """Why the text of a source, or its ready-made store, can't be found; None if it can."""
    try:
        if member.source is not None:
            member.source.state()
        elif "://" not in str(member.store) and not Path(str(member.store)).expanduser().exists():
            return f"there is no store {member.store}"
    except NoSuchText as error:  # what was made of it may still be there
        made = from_before(run.data, member, run.tokenizer, Path(run.impl.data_dir))
        return None if made is not None else str(error)
    except SlmError as error:
        return str(error)
    return None


def _wanted(run: Run, course: Course) -> dict[str, int]:
    """Tokens that the mixture asks of each source, were there enough of it."""
    names = list(run.data.members)
    mixing = run.data.mixing
    if mixing is None:
        return {names[0]: course.tokens(course.total)}
    horizon = _horizon(run, course)
    spans = spans_of(mixing, names, run.data.seq_len, horizon)
    endless = np.full(len(names), NEVER, dtype=np.int64)
    rows = resolve_mixture(spans, endless, "error").timeline.due_at(horizon.rows or 0)
    return {name: round(float(n) * run.data.seq_len) for name, n in zip(names, rows, strict=True)}


def _horizon(run: Run, course: Course) -> Horizon:
    return Horizon(course.total_rows, run.train.batch_tokens // run.data.seq_len, course.params)
