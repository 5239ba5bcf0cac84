"""From stages and caps to rows: what is refused, what runs out where, and what is done about it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.base import explain
from slm.config.errors import ConfigError
from slm.data.plan import Horizon, MemoryDocuments, Mixture, Stage
from slm.data.plan.plan import Plan
from slm.data.plan.table import summary, table

SEQ_LEN = 8


def source(rows: int, mark: int) -> MemoryDocuments:
    """``rows`` documents of one row each, all tokens ``mark``."""
    return MemoryDocuments([[mark] * (SEQ_LEN - 1) for _ in range(rows)])


def plan(mixture: Mixture | dict[str, Any], rows: int | None = None, **sizes: int) -> Plan:
    members = [(name, source(n, 10 + i)) for i, (name, n) in enumerate(sorted(sizes.items()))]
    mixture = mixture if isinstance(mixture, Mixture) else Mixture(**mixture)
    return Plan(members, seq_len=SEQ_LEN, eot=1, mixture=mixture, horizon=Horizon(rows, 4, 1000))


def drawn_at(plan: Plan, rows: int) -> np.ndarray:
    """Rows of each source after every row, counted from the text itself."""
    marks = plan.rows(0, rows).tokens[:, 1] - 10
    return np.concatenate(
        [np.zeros((1, len(plan.names)), int), np.cumsum(marks[:, None] == np.arange(len(plan.names)), 0)]
    )


def tokens(rows: int) -> str:
    return f"{rows * SEQ_LEN} tokens"


# ---- what the user writes ---------------------------------------------------------------------------


def complaint(**stage: Any) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        Stage(**stage)
    return str(explain(caught.value, Stage))


def test_weights_that_do_not_sum_are_refused_with_the_sum() -> None:
    assert "sum to 0.950000, not to 1" in complaint(weights={"web": 0.7, "code": 0.25})
    Stage(weights={"a": 0.1, "b": 0.2, "c": 0.7})  # as binary fractions they don't sum to 1
    Stage(weights={f"s{i}": 0.025 for i in range(40)})


def test_weights_are_exact_and_not_negative() -> None:
    assert "more than six decimals" in complaint(weights={"a": 1 / 3, "b": 2 / 3})
    Stage(weights={"a": 0.333333, "b": 0.666667})
    assert "between 0 and 1" in complaint(weights={"a": 1.5, "b": -0.5})
    assert "between 0 and 1" in complaint(weights={"a": float("nan")})


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"stages": [{"weights": {"a": 1}}, {"weights": {"a": 1}}]}, "no 'until'"),
        ({"stages": [{"weights": {"a": 1}, "ramp": True}]}, "first stage can't be a ramp"),
        ({"stages": [{"weights": {"a": 1}}], "max_epochs": {"a": 0}}, "above 0"),
        ({"stages": []}, "at least 1"),
    ],
)
def test_impossible_mixtures(mixture: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        Mixture(**mixture)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"weights": {"a": 0.5, "bb": 0.5}}], r"Unknown source 'bb' in stage 0.*Did you mean 'b'"),
        ([{"weights": {"a": 1.0}}], r"No stage of the mixture gives a weight to 'b'"),
        (
            [
                {"weights": {"a": 1}, "until": tokens(9)},
                {"weights": {"b": 1}, "until": tokens(9)},
                {"weights": {"a": 1}},
            ],
            r"Stage 1 of the mixture ends at row 9 .* begins at row 9",
        ),
        ([{"weights": {"a": 0.5, "b": 0.5}, "until": tokens(90)}], r"last stage ends at row 90.*has 100 rows"),
    ],
)
def test_mixtures_that_do_not_fit_the_run(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan({"stages": stages}, rows=100, a=5, b=5)


def test_a_stage_ends_after_no_time() -> None:
    with pytest.raises(pydantic.ValidationError, match="'2 h' is a time"):
        Mixture(stages=[{"weights": {"a": 0.5, "b": 0.5}, "until": "2h"}, {"weights": {"a": 1}}])


def test_durations_without_a_run() -> None:
    stages = [{"weights": {"a": 1.0}, "until": "5 steps"}, {"weights": {"b": 1.0}}]
    with pytest.raises(ConfigError, match="can't be turned into rows without the run"):
        Plan([("a", source(2, 1)), ("b", source(2, 1))], seq_len=SEQ_LEN, eot=1, mixture=Mixture(stages=stages))
    with pytest.raises(ConfigError, match="is a ramp, so it needs an 'until'"):
        plan({"stages": [{"weights": {"a": 1.0}, "until": tokens(4)}, {"weights": {"b": 1.0}, "ramp": True}]}, a=2, b=2)


@pytest.mark.parametrize(
    ("until", "rows"), [("5 steps", 20), (tokens(20), 20), ("0.16 tokens_per_param", 20), ("20%", 20)]
)
def test_durations_in_rows(until: str, rows: int) -> None:
    stages = [{"weights": {"a": 1.0}, "until": until}, {"weights": {"b": 1.0}}]
    made = plan({"stages": stages}, rows=100, a=5, b=5)
    assert drawn_at(made, 100)[[rows, 100]].tolist() == [[rows, 0], [rows, 80]]


# ---- what is read -----------------------------------------------------------------------------------

NAMES = ("a", "b", "c")


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Mixture, list[tuple[int, list[Fraction], list[Fraction]]]]:
    """A mixture, and its stages as (last row, weights at the beginning, at the end)."""
    stages: list[Stage] = []
    declared: list[tuple[int, list[Fraction], list[Fraction]]] = []
    last = 0
    for number in range(draw(st.integers(1, 4))):
        parts = draw(st.sampled_from([10, 100, 1000, 10**6]))
        cuts = sorted(draw(st.tuples(st.integers(1, parts - 1), st.integers(1, parts - 1))))
        shares = [Fraction(n, parts) for n in (cuts[0], cuts[1] - cuts[0], parts - cuts[1])]
        ramp = number > 0 and draw(st.booleans())
        last += draw(st.integers(1, 120))
        stages.append(Stage(until=tokens(last), weights=dict(zip(NAMES, map(float, shares), strict=True)), ramp=ramp))
        declared.append((last, declared[-1][2] if ramp else shares, shares))
    return Mixture(stages=stages), declared


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_counts_follow_the_weights_at_every_prefix(
    case: tuple[Mixture, list[tuple[int, list[Fraction], list[Fraction]]]],
) -> None:
    mixture, declared = case
    total = declared[-1][0]
    made = plan(mixture, total, a=3, b=7, c=20)
    drawn = drawn_at(made, total)
    first, due = 0, [Fraction(0)] * 3
    for last, before, after in declared:
        for row in range(first, last + 1):
            k, n = row - first, last - first
            integral = [d + p * k + (q - p) * k * k / (2 * n) for d, p, q in zip(due, before, after, strict=True)]
            assert all(abs(int(x) - i) < 1 for x, i in zip(drawn[row], integral, strict=True))
            if row % 17 == 0:
                assert made.drawn(row).tolist() == drawn[row].tolist()
        first, due = last, integral


def test_a_source_keeps_its_order_whatever_it_is_mixed_with() -> None:
    docs = MemoryDocuments([[100 + i] * 7 for i in range(50)])
    alone = Plan([("web", docs)], seq_len=SEQ_LEN, eot=1, seed=3)
    half = Mixture(stages=[Stage(weights={"web": 0.5, "code": 0.5})])
    mixed = Plan([("code", source(9, 10)), ("web", docs)], seq_len=SEQ_LEN, eot=1, seed=3, mixture=half)
    marks = mixed.rows(0, 200).tokens[:, 1]
    assert marks[marks >= 100].tolist() == alone.rows(0, 100).tokens[:, 1].tolist()


def test_the_order_of_members_and_the_cap_that_is_not_reached_change_nothing() -> None:
    members = [("a", source(5, 10)), ("b", source(5, 11))]
    stage = Stage(weights={"a": 0.25, "b": 0.75})
    one = Plan(members, seq_len=SEQ_LEN, eot=1, mixture=Mixture(stages=[stage]))
    two = Plan(
        members[::-1], seq_len=SEQ_LEN, eot=1, mixture=Mixture(stages=[stage], max_epochs={"b": 4}, on_exhaust="stop")
    )
    assert one.hash == two.hash
    assert np.array_equal(one.rows(0, 20).tokens, two.rows(0, 20).tokens)


# ---- what runs out ----------------------------------------------------------------------------------


def capped(on_exhaust: str, **more: Any) -> dict[str, Any]:
    return {
        "stages": [{"weights": {"a": 0.5, "b": 0.3, "c": 0.2}}],
        "max_epochs": {"b": 3},
        "on_exhaust": on_exhaust,
    } | more


def test_a_source_that_runs_out_is_an_error_before_the_run() -> None:
    with pytest.raises(
        ConfigError, match=r"'b' runs out at row 100 of 400 \(step 25\), in stage 0: .* 3 epochs of its 10 rows.*12\.00"
    ):
        plan(capped("error"), rows=400, a=10, b=10, c=10)
    assert plan(capped("error"), rows=100, a=10, b=10, c=10).limit == 100


def test_a_row_beyond_the_end_is_an_error() -> None:
    made = plan(capped("error"), a=10, b=10, c=10)
    made.rows(99, 1)
    with pytest.raises(Exception, match=r"no row 100: it ends at row 100, where 'b' has been read max_epochs times"):
        made.rows(98, 3)
    with pytest.raises(Exception, match="no row"):
        made.rows(-1, 1)


def test_stop_shortens_the_run() -> None:
    made = plan(capped("stop"), rows=400, a=10, b=10, c=10)
    assert made.limit == 100
    assert drawn_at(made, 100)[-1].tolist() == [50, 30, 20]
    assert summary(made)["exhausted"] == [{"source": "b", "row": 100, "stage": 0}]


def test_renormalise_shares_the_weight_in_proportion() -> None:
    made = plan(capped("renormalise"), rows=400, a=10, b=10, c=10)
    drawn = drawn_at(made, 400)
    assert drawn[100].tolist() == [50, 30, 20]
    assert np.abs(drawn[400] - [50 + 300 * 5 / 7, 30, 20 + 300 * 2 / 7]).max() < 1
    assert made.limit is None
    with pytest.raises(ConfigError, match="Every source with a weight has been read max_epochs times"):
        plan(capped("renormalise", max_epochs={"a": 2, "b": 2, "c": 2}), rows=400, a=10, b=10, c=10)


@settings(max_examples=40, deadline=None)
@given(
    mixtures(),
    st.lists(st.integers(1, 40), min_size=3, max_size=3),
    st.lists(st.sampled_from([None, 0.5, 1, 1.7, 4]), min_size=3, max_size=3),
)
def test_caps_are_kept_and_sources_end_when_they_are_used_up(
    case: tuple[Mixture, list[Any]], sizes: list[int], epochs: list[float | None]
) -> None:
    caps = {n: e for n, e in zip(NAMES, epochs, strict=True) if e is not None}
    most = [int(Fraction(str(e)) * n) if e else 10**9 for e, n in zip(epochs, sizes, strict=True)]
    mixture, total = case[0], case[1][-1][0]
    shared = plan(mixture.with_(max_epochs=caps, on_exhaust="renormalise"), **dict(zip(NAMES, sizes, strict=True)))
    free = plan(mixture, **dict(zip(NAMES, sizes, strict=True)))
    limit = total if shared.limit is None else min(total, shared.limit)
    drawn = drawn_at(shared, limit)
    assert (drawn[-1] <= most).all()
    assert shared.resolved is not None
    due = shared.resolved.timeline.due_at(limit)
    assert np.abs(drawn[-1] - due).max() < 1
    for gone in shared.resolved.exhausted:  # nothing of it after that row, but what was due before
        assert drawn[-1][gone.source] - drawn[min(gone.row, limit)][gone.source] <= 1
        assert drawn[-1][gone.source] >= most[gone.source] - 1
    if shared.resolved.exhausted:
        first = shared.resolved.exhausted[0].row
        stopped = plan(mixture.with_(max_epochs=caps, on_exhaust="stop"), **dict(zip(NAMES, sizes, strict=True)))
        straight = not any(s.ramp for s in mixture.stages)
        if straight:  # a ramp in which a source runs out is a staircase
            assert stopped.limit == first
        assert stopped.limit is not None
        assert np.array_equal(stopped.rows(0, stopped.limit).tokens, free.rows(0, stopped.limit).tokens)
    else:
        assert np.array_equal(shared.rows(0, total).tokens, free.rows(0, total).tokens)


# ---- the table --------------------------------------------------------------------------------------


def test_the_table_says_what_is_read() -> None:
    stages = [
        {"weights": {"a": 0.75, "b": 0.25}, "until": tokens(80)},
        {"weights": {"a": 0.25, "b": 0.75}, "until": tokens(160), "ramp": True},
        {"weights": {"b": 1.0}},
    ]
    made = plan({"stages": stages}, rows=200, a=200, b=50)
    lines = {(line.stage, line.source): line for line in table(made)}
    assert [lines[s, "a"].rows for s in range(3)] == [60, 40, 0]
    assert [lines[s, "b"].rows for s in range(3)] == [20, 40, 40]
    assert lines[1, "b"].weight == (0.25, 0.75)
    assert lines[2, "b"].epochs == 0.8
    assert lines[2, "b"].epochs_so_far == 2.0
    assert [lines[s, "b"].unique for s in range(3)] == [1.0, 0.75, 0.0]
    assert lines[0, "a"].tokens == 60 * SEQ_LEN
    assert (lines[2, "b"].first_row, lines[2, "b"].last_row) == (160, 200)
    endless = table(plan({"stages": stages}, a=200, b=50))
    assert endless[-1].rows is None
    assert endless[-1].last_row is None
