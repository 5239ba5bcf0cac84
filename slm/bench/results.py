"""What a benchmark says: one number of ours, the peer's beside it, and whether a target is met."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Target:
    """A bound on a result's ``value``, or on its ``ratio`` to the peer's."""

    compare: str
    bound: float
    of: str = "value"

    def __str__(self) -> str:
        return f"{self.compare} {self.bound:g}{'x' if self.of == 'ratio' else ''}"


@dataclass(frozen=True)
class Result:
    """One measurement.

    ``value`` (None: not measured, the note says why) and ``peer_value`` are in ``unit``; rates are per second of one processor's time (user and system, children
    included), which other work on the machine disturbs least. ``wall`` has the same by the clock on the wall. ``ratio``
    says how many times as good as the peer ours is. ``met`` is None without a target or without the peer that it needs.
    """

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None
    wall: dict[str, float | None] | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def result(
    name: str,
    value: float | None,
    unit: str,
    *,
    peer: str | None = None,
    peer_value: float | None = None,
    target: Target | None = None,
    wall: tuple[float, float | None] | None = None,
    less_is_better: bool = False,
    note: str = "",
) -> Result:
    """A result with its ratio and its verdict worked out. ``wall``: (ours, the peer's) by the clock on the wall."""

    def ratio_of(ours: float | None, other: float | None) -> float | None:
        if not other or not ours:
            return None
        return other / ours if less_is_better else ours / other

    ratio = ratio_of(value, peer_value)
    met = None
    if target is not None:
        compared = ratio if target.of == "ratio" else value
        met = None if compared is None else bool(_COMPARE[target.compare](compared, target.bound))
    walls = None
    if wall is not None:
        walls = {"value": wall[0], "peer_value": wall[1], "ratio": ratio_of(*wall)}
    return Result(name, value, unit, peer, peer_value, ratio, None if target is None else str(target), met, walls, note)


def median(values: list[float]) -> float:
    """The median; of an even number, the mean of the two in the middle."""
    return float(statistics.median(values))


BY_PROCESSORS = (
    "Rates are per second of processor time, children included; *by the wall* is the ratio of the rates by the clock."
)
COLUMNS = ("benchmark", "slm", "unit", "peer", "peer's", "ratio", "by the wall", "target", "met")


def rows(results: list[Result]) -> list[list[str]]:
    """Results as rows of a table, under `COLUMNS`."""
    return [
        [
            r.name,
            _number(r.value),
            r.unit,
            r.peer or "",
            _number(r.peer_value),
            _ratio(r.ratio),
            _ratio(r.wall["ratio"]) if r.wall and r.wall["ratio"] else "",
            r.target or "",
            {None: "", True: "yes", False: "no"}[r.met],
        ]
        for r in results
    ]


def markdown(title: str, report: Mapping[str, Any], results: list[Result], command: str) -> str:
    """A page of documentation: when and where it was measured, the table, the notes."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']}. " if machine.get("gpu") else ""
    load = ", ".join(f"{x:.1f}" for x in machine["load"])
    lines = [
        f"# {title}",
        "",
        f"Written by `{command}` on {machine['date']}; do not edit.",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB; load averages at the start {load} "
        f"(other work was running where they are above 0). {gpu}Python {machine['python']}, {versions}.",
        "",
        ("Rates are by the clock." if gpu else BY_PROCESSORS)
        + f" Ours and the peer's took turns; medians of {report['settings']['repeats']}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(results)),
        "",
    ]
    notes = dict.fromkeys(r.note for r in results if r.note)
    for note in notes:
        names = [r.name for r in results if r.note == note]
        lines.append(f"- {'; '.join(names)}: {note}")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}x"
