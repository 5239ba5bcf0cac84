from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.data.document import Broken, Document
from slm.data.sources.records import Fields, half_surrogate

FIELDS = Fields(columns={"score": "score", "deep": "a.b", "flat": "x.y"})


def read(line: bytes | str, fields: Fields = FIELDS) -> Document | Broken:
    return fields.from_json(line.encode() if isinstance(line, str) else line, "f.jsonl", 7)


@pytest.mark.parametrize(
    ("line", "rule", "why"),
    [
        ("{", "bad_json", "not valid JSON"),
        ('{"text": "x"} trailing', "bad_json", "Extra data"),
        ('{"text": "x", "text": "y"}', "bad_json", "'text' stands there twice"),
        ('{"text": "x", "a": {"b": 1, "b": 2}}', "bad_json", "'b' stands there twice"),
        ('{"text": "x", "score": NaN}', "bad_json", "NaN is not JSON"),
        ('{"text": "x", "score": -Infinity}', "bad_json", "Infinity"),
        ("[1, 2]", "bad_json", "a JSON list"),
        ('"text"', "bad_json", "a JSON str"),
        ('{"text": ' * 100_000, "bad_json", "nested too deeply"),
        ('{"content": "x"}', "no_text", "no key 'text' (there are 'content'"),
        ('{"text": null}', "null_text", "'text' is null"),
        ('{"text": ["x"]}', "not_text", "'text' is list"),
        ('{"text": "ab\\ud800"}', "invalid_utf8", "half a surrogate pair at character 2"),
        (b'{"text": "ab\xff"}', "invalid_utf8", "invalid UTF-8 at byte 12"),
        ('{"text": "\tx"}', "bad_json", "control character"),
    ],
)
def test_what_is_no_document_says_where_and_why(line: bytes | str, rule: str, why: str) -> None:
    broken = read(line)
    assert isinstance(broken, Broken)
    assert (broken.where, broken.rule) == ("f.jsonl, line 7", rule)
    assert why in broken.why


def test_fields_are_found_by_name_or_by_path_and_what_is_missing_is_null() -> None:
    doc = read('{"text": "x", "id": 3, "a": {"b": [1]}, "x.y": 2, "other": 1}')
    assert doc == Document("3", "x", {"score": None, "deep": [1], "flat": 2})
    assert read('{"text": "x", "a": 3}') == Document("f.jsonl:7", "x", {"score": None, "deep": None, "flat": None})
    nested = Fields(text="body.text", id="body.id", columns=None)
    assert read('{"body": {"text": "x", "id": "i"}, "k": 1}', nested).meta == {"body": {"id": "i"}, "k": 1}


def test_an_id_that_was_asked_for_must_be_there() -> None:
    assert read('{"text": "x", "id": ""}').id == "f.jsonl:7"
    broken = read('{"text": "x", "id": null}', Fields(id_required=True))
    assert isinstance(broken, Broken)
    assert broken.rule == "no_id"


def test_metadata_with_half_a_surrogate_pair_can_be_stored() -> None:
    doc = read('{"text": "x", "id": "\\ud800", "score": {"\\udfff": ["\\ud800"]}}')
    assert doc == Document("\\ud800", "x", {"score": {"\\udfff": ["\\ud800"]}, "deep": None, "flat": None})
    assert read('{"text": "\\ud83d\\ude00"}').text == "\U0001f600"


def test_only_the_first_line_may_begin_with_a_byte_order_mark() -> None:
    line = b'\xef\xbb\xbf{"text": "x"}'
    assert isinstance(FIELDS.from_json(line, "f", 1), Document)
    assert isinstance(FIELDS.from_json(line, "f", 2), Broken)


TEXT = st.text('ab\n"\\\u00e9\U0001f600\ud800\udfff', max_size=5)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["text", "id", "a", "score"]), JSON), st.booleans())
def test_any_json_becomes_a_document_that_can_be_stored_or_is_named(record: dict[str, Any], escape: bool) -> None:
    raw = json.dumps(record, ensure_ascii=escape).encode("utf-8", "surrogatepass")
    got = Fields(columns=None).from_json(raw, "f", 2)
    if isinstance(got, Document):
        assert got.text == record["text"]
        json.dumps([got.id, dict(got.meta)], ensure_ascii=False).encode()
        assert half_surrogate(got.text) is None
    else:
        assert not isinstance(record.get("text"), str) or "utf" in got.rule


@given(st.binary(max_size=60))
def test_any_bytes_are_a_document_or_broken(raw: bytes) -> None:
    assert isinstance(read(raw), Document | Broken)
