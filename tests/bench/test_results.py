"""Ratios, verdicts and the table."""

from __future__ import annotations

import pytest

from slm.bench.clock import Timing, in_turns, rates, timed
from slm.bench.results import COLUMNS, Result, Target, markdown, result, rows

REPORT = {
    "machine": {
        "date": "2026-01-02", "cpu": "A processor", "cores": 2, "memory_gib": 8.0, "load": [0.5, 0.0, 0.0],
        "python": "3.11.7", "versions": {"slm": "0.1", "grain": None},
    },
    "settings": {"repeats": 3},
}  # fmt: skip


def test_a_ratio_says_how_many_times_as_good_ours_is() -> None:
    assert result("a", 10.0, "Mtok/s", peer="p", peer_value=4.0).ratio == 2.5
    assert result("a", 10.0, "ms", peer="p", peer_value=40.0, less_is_better=True).ratio == 4.0
    assert result("a", 10.0, "Mtok/s", peer="p (not installed)").ratio is None
    assert result("a", 0.0, "%", peer="p", peer_value=3.0).ratio is None


@pytest.mark.parametrize(
    ("value", "peer", "target", "met"),
    [
        (10.0, 1.0, Target(">=", 10, "ratio"), True),
        (9.0, 1.0, Target(">=", 10, "ratio"), False),
        (10.0, None, Target(">=", 10, "ratio"), None),
        (10.0, None, Target(">=", 10), True),
        (100.0, None, Target("<", 100), False),
        (0.0, None, Target("==", 0), True),
        (None, 1.0, Target(">=", 1, "ratio"), None),
        (None, None, Target(">=", 1), None),
    ],
)
def test_a_target_is_met_missed_or_left_open(
    value: float | None, peer: float | None, target: Target, met: bool | None
) -> None:
    assert result("a", value, "x", peer="p", peer_value=peer, target=target).met is met


def test_the_wall_has_a_ratio_of_its_own() -> None:
    one = result("a", 10.0, "x", peer="p", peer_value=5.0, wall=(6.0, 2.0))
    assert one.as_dict()["wall"] == {"value": 6.0, "peer_value": 2.0, "ratio": 3.0}


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def run(name: str) -> Timing:
        order.append(name)
        return Timing(2.0, 1.0, 1e6 * len(order))

    found = in_turns({"a": lambda: run("a"), "b": lambda: run("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert rates(found["a"]) == (2.0, 1.0)


def test_processor_time_counts_work_and_not_sleep() -> None:
    def spin() -> float:
        return float(sum(range(3_000_000)))

    timing = timed(spin)
    assert timing.amount == sum(range(3_000_000))
    assert 0 < timing.cpu <= timing.wall + 0.05


def test_the_page_has_date_machine_versions_every_result_and_its_note() -> None:
    results: list[Result] = [
        result("load", 51.5, "Mtok/s", peer="Grain", peer_value=5.0, target=Target(">=", 5, "ratio"), note="a note"),
        result("tokenise", None, "Mtok/s", note="not measured: no such package"),
    ]
    page = markdown("Benchmarks", REPORT, results, "slm bench data")
    for part in (
        "2026-01-02",
        "A processor",
        "grain not installed",
        "| load | 51.5 | Mtok/s | Grain | 5 | 10.3x |",
        "a note",
        "no such package",
    ):
        assert part in page
    assert all(len(row) == len(COLUMNS) for row in rows(results))
