from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.errors import ConfigError, RunError
from slm.data.curate.filters import Filter
from slm.data.document import Document

PAGE = Document(
    "urn:1",
    "héllo",
    {
        "int_score": 3,
        "score": 2.5,
        "language": "en",
        "language_score": 0.92,
        "dump": "CC-MAIN-2024-10",
        "url": "http://a.edu/x",
        "date": None,
        "nan": math.nan,
        "flag": True,
        "length": 7,
        "metadata": {"score": 4, "WARC-Type": "response", "Truncated": None},
        "when": dt.datetime(2013, 5, 18, 7, 24, 47),
        "tags": ["a"],
    },
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int_score >= 3", True),
        ("int_score > 3", False),
        ("3 <= int_score", True),
        ("2 < score <= 2.5", True),
        ("2 < score < 2.5", False),
        ('language == "en" and language_score >= 0.9', True),
        ('language != "en" or language_score >= 0.9', True),
        ("not (int_score < 3)", True),
        ('dump in ["CC-MAIN-2024-10", "CC-MAIN-2013-20"]', True),
        ('dump not in ["CC-MAIN-2024-10"]', False),
        ("int_score in [1, 3.0]", True),
        (r'url ~ "\.(edu|gov)(/|$)"', True),
        (r'url ~ "\bedu\b" and not url ~ "^https"', True),  # \b is the expression's, not a backspace
        ("metadata.score >= 4", True),
        ('metadata["WARC-Type"] == "response"', True),
        ("metadata.nothing is null and metadata.Truncated is null", True),
        ("metadata is not null", True),
        ("flag == true", True),
        ("flag != true", False),
        ("chars == 5 and bytes == 6 and length == 5", True),
        ("column.length == 7", True),
        ('id == "urn:1" and text ~ "llo$"', True),
        ("score < int_score", True),
        ('when >= "2013-05-18" and when < "2014"', True),
        ("int_score > -1e9", True),
        ("int_score ==\n  3", True),
    ],
)
def test_predicates(text: str, expected: bool) -> None:
    found = Filter.parse(text)
    assert found.keep(PAGE) is expected
    assert found.reason(PAGE) == (None if expected else text)


@pytest.mark.parametrize(
    "text",
    [
        "date > 3",
        "not (date > 3)",
        "date != 3",
        'date ~ "x"',
        'not date in ["x"]',
        "nan > 0",
        "not (nan > 0)",
        "absent == 1",
        "absent == int_score",
        "metadata.Truncated == true",
        "int_score >= 3 and date > 3",
        "int_score > 3 or date > 3",
    ],
)
def test_a_missing_value_neither_holds_nor_fails_and_is_counted_apart(text: str) -> None:
    assert not Filter.parse(text).keep(PAGE)
    assert Filter.parse(text).reason(PAGE) == f"{text}:null"


def test_a_missing_value_doesn_t_matter_where_the_rest_decides() -> None:
    assert Filter.parse("int_score == 3 or date > 3").keep(PAGE)
    assert Filter.parse("date > 3 or date is null").keep(PAGE)
    assert Filter.parse("int_score > 3 and date > 3").reason(PAGE) == "int_score > 3 and date > 3"


def test_columns_are_the_source_s_own() -> None:
    found = Filter.parse('a.b > 1 and not (c in [1] or d is null) and e ~ "x" and chars > f and text ~ "y"')
    assert found.columns == {"a.b", "c", "d", "e", "f"}
    assert found.builtins == {"chars", "text"}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (
            "int_scor >= 3",
            ["int_score", "score"],
            r"no column 'int_scor' \(at character 1\)\. Did you mean 'int_score'",
        ),
        ("bites > 3 and int_score > 1", ["int_score"], "Did you mean 'bytes'"),
        ("metadata.scor > 1", ["metadata", "metadata.score"], r"Did you mean 'metadata\.score'"),
        ("date.year > 1", ["day"], r"There are: bytes, chars, day"),
    ],
)
def test_unknown_columns_are_named(text: str, columns: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Filter.parse(text).check(columns)


def test_known_columns_pass() -> None:
    for columns in (["a", "m"], ["a", "m.x", "m.y"], ["a", "m", "m.x.z"]):
        Filter.parse("a > 1 and m.x is not null and bytes > 3").check(columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("int_score >", "at character"),
        ("(int_score > 3", r"at character 1 .*never closed"),
        ("int_score = 3", r"at character 11 .*Equality is '=='"),
        ("a > 1 && b > 1", r"at character 8.*Write 'and' and 'or'"),
        ("!(a > 1)", "'not' for not"),
        ("flag", r"at character 1 \('flag'\): a column alone .*flag == true"),
        ("1 < 2", "compares two constants"),
        ('"a" == "a"', "compares two constants"),
        ("a == null", r"at character 6 \('null'\).*is null"),
        ("a is 3", "'is' goes with null"),
        ("a > true", "no order"),
        ("a in []", "after 'in'"),
        ('"x" in url', "without quotes"),
        ('a in [1, "b"]', r"at character 10 \('\"b\"'\).*one kind"),
        ('a in ["b" "c"]', r"at character 11 .*comma is missing"),
        ('url ~ "("', r"at character 7 .*not a regular expression"),
        ("url ~ url", "regular expression in quotes"),
        ("a @ b", r"at character 3 \('@'\)"),
        ('a == f"x"', "plain quotes"),
        ('a == """x"""', "plain quotes"),
        ("a > 1 + 1", r"at character 5 \('1 \+ 1'\)"),
        ("len(text) > 1", r"at character 1 \('len\(text\)'\)"),
        ("(lambda: 1)() > 0", "at character 1"),
        ("a[0] > 1", r"at character 1 \('a\[0\]'\)"),
        ("a > 99999999999999999999", "64 bits"),
        ('é == "ü" and 5 == 5', r"at character 14 \('5 == 5'\)"),
        ("  a > > 1", r"at character 7"),
        ("(" * 500 + "a > 1" + ")" * 500, "not understood"),
        ("a > 1\x00", "not understood"),
    ],
)
def test_faults_are_shown_where_they_stand(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url > 3", r"'url' holds text .*compared with a number \(3\)"),
        ('int_score == "3"', r"'int_score' holds a number .*text \('3'\)"),
        ("flag == 1", r"'flag' holds true or false"),
        ("url == score", r"column 'score' \(a number\)"),
        ('score ~ "3"', "'score' holds a number .*~ is for text"),
        ('tags == "a"', "'tags' holds values of type"),
        ("tags == tags", "'tags' holds values of type"),
        ("score.x > 3", "'score' holds .*, not a record"),
        ("flag < flag", "no order"),
        ('int_score > 100 and url in ["3"] and url > 3', "'url' holds text"),  # not hidden by what decided already
    ],
)
def test_comparisons_of_different_kinds_are_errors_in_both_evaluations(text: str, message: str) -> None:
    found = Filter.parse(text)
    for decide in (lambda: found.keep(PAGE), lambda: found.mask(pa.Table.from_pylist([dict(PAGE.meta)] * 3))):
        with pytest.raises(RunError, match=message):
            decide()


def test_a_table_must_have_the_columns() -> None:
    table = pa.table({"score": [1.0], "m": [{"x": 1}], "bytes": [3]})
    with pytest.raises(ConfigError, match=r"no column 'scor'.*Did you mean 'score'"):
        Filter.parse("scor > 1").mask(table)
    with pytest.raises(ConfigError, match=r"no column 'm\.z'"):
        Filter.parse("m.z > 1").mask(table)
    with pytest.raises(ConfigError, match="no column 'chars'"):
        Filter.parse("chars > 1").mask(table)
    assert Filter.parse("bytes == 3").mask(table).tolist() == [True]  # a store knows the lengths without the texts


def test_arrow_s_other_types_mean_the_same() -> None:
    when = [dt.datetime(2013, 5, 18, 7, 24, 47), None, dt.datetime(2020, 1, 1)]
    table = pa.table(
        {
            "s": pa.array(when, pa.timestamp("s")),
            "ns": pa.array(when, pa.timestamp("ns")),
            "d": pa.array([w and w.date() for w in when], pa.date32()),
            "coded": pa.array(["a", None, "b"]).dictionary_encode(),
            "large": pa.array(["a", None, "b"], pa.large_string()),
            "view": pa.array(["a", None, "b"], pa.string_view()),
            "u64": pa.array([2**64 - 1, None, 0], pa.uint64()),
            "f32": pa.array([0.1, None, 3], pa.float32()),
            "none": pa.nulls(3),
            "flat.x": [1, None, 2],
        }
    )
    rows = [Document(str(i), "", row) for i, row in enumerate(table.to_pylist())]
    for text in (
        's >= "2014"',
        'ns >= "2014"',
        'd < "2014"',
        'coded == "a"',
        'large in ["b", "c"]',
        'view ~ "a"',
        "large < view",
        "u64 > 5",
        "u64 > -5.5",
        "f32 > 0.1",
        "none > 1",
        'none ~ "x"',
        'none in ["x"]',
        "flat.x == 2",
    ):
        found = Filter.parse(text)
        assert found.mask(table).tolist() == [found.keep(row) for row in rows], text


def test_an_empty_table_has_an_empty_mask() -> None:
    table = pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())})
    for text in ("a > 1", 'b ~ "x"', 'b in ["x"]', "a is null", 'not (a > 1 or b == "c")'):
        mask = Filter.parse(text).mask(table)
        assert mask.shape == (0,)
        assert mask.dtype == np.bool_


NUMBERS = st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
FLOATS = st.none() | st.floats(width=64) | st.sampled_from([0.0, -1.5, 2.0])
TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(["a", "ab", "b"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "i": NUMBERS,
            "j": NUMBERS,
            "f": FLOATS,
            "s": TEXTS,
            "b": st.none() | st.booleans(),
            "m": st.none() | st.fixed_dictionaries({"x": NUMBERS, "s": TEXTS}),
            "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        }
    ),
    max_size=8,
)
SCHEMA = pa.schema(
    [
        ("i", pa.int64()),
        ("j", pa.int64()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("m", pa.struct([("x", pa.int64()), ("s", pa.string())])),
        ("text", pa.string()),
    ]
)


def _leaves() -> st.SearchStrategy[str]:
    op = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    number = st.sampled_from(["0", "1", "-2", "2.0", "1.5", "-1e300", str(2**63 - 1), "9007199254740993"])
    name = st.sampled_from(["i", "j", "f", "m.x", "chars", "bytes"])
    text, quoted = st.sampled_from(["s", "m.s", "text"]), st.sampled_from(['"a"', "'ab'", '""', '"é"'])
    anything = name | text | st.sampled_from(["b", "m"])

    def join(*parts: Any) -> st.SearchStrategy[str]:
        return st.tuples(*(p if isinstance(p, st.SearchStrategy) else st.just(p) for p in parts)).map(" ".join)

    return st.one_of(
        join(name, op, number),
        join(number, op, name),
        join(name, op, name),
        join(number, "<", name, "<=", number),
        join(text, op, quoted),
        join(text, op, text),
        join("b", st.sampled_from(["==", "!="]), st.sampled_from(["true", "false"])),
        join(name, "in [", number, ",", number, "]"),
        join(text, "not in [", quoted, ",", quoted, "]"),
        join(text, "~", st.sampled_from(['"^a"', r'"\w"', '"b$"', '"(?!a)."', '""'])),
        join(anything, st.sampled_from(["is null", "is not null"])),
    )


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    word = st.sampled_from([" and ", " or "])
    return st.tuples(inner, word, inner).map(lambda t: f"({''.join(t)})") | inner.map(lambda t: f"not ({t})")


@given(rows=ROWS, text=st.recursive(_leaves(), _nested, max_leaves=5))
@settings(max_examples=400, deadline=None)
def test_one_document_and_a_whole_table_agree(rows: list[dict[str, Any]], text: str) -> None:
    found = Filter.parse(text)
    documents = [
        Document(str(n), row["text"], {k: v for k, v in row.items() if k != "text"}) for n, row in enumerate(rows)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    assert found.mask(table).tolist() == [found.keep(d) for d in documents]
    assert [found.rule(t) for t in found.truths(table)] == [found.reason(d) for d in documents]


VALUES = {"i": 2, "f": 0.5, "s": "ab", "b": True, "n": None}


@given(text=st.recursive(st.sampled_from(["i > 1", "f > 1", 's ~ "b"', "b == false", "n > 1"]), _nested, max_leaves=6))
@settings(max_examples=200, deadline=None)
def test_logic_is_sql_s(text: str) -> None:
    """Against an independent evaluation: Python's own `eval` over three-valued objects."""
    stands = {"i > 1": 2, "f > 1": 0, 's ~ "b"': 2, "b == false": 0, "n > 1": 1}  # 2 true, 1 unknown, 0 false

    class Kleene:
        def __init__(self, level: int) -> None:
            self.level = level

        __and__: Callable[["Kleene", "Kleene"], "Kleene"] = lambda a, b: Kleene(min(a.level, b.level))
        __or__: Callable[["Kleene", "Kleene"], "Kleene"] = lambda a, b: Kleene(max(a.level, b.level))
        __invert__: Callable[["Kleene"], "Kleene"] = lambda a: Kleene(2 - a.level)

    source = text
    for leaf, level in stands.items():
        source = source.replace(leaf, f"K({level})")
    source = source.replace(" and ", " & ").replace(" or ", " | ").replace("not ", "~")
    level = eval(source, {"K": Kleene}).level
    expected = {2: None, 1: f"{text}:null", 0: text}[level]
    assert Filter.parse(text).reason(Document("x", "", VALUES)) == expected
