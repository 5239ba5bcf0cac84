"""From a record of a file to a document: which field is the text, which the id, which columns are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slm.data.document import Broken, Document

_MISSING = object()


class _Refused(ValueError):
    """JSON that the standard library would read, and that isn't JSON or says two things."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands there twice")
    return made


def _constant(text: str) -> Any:
    raise _Refused(f"{text} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant)
"""Refuses what the JSON standard refuses, and keys that occur twice in an object."""


@dataclass(frozen=True)
class Fields:
    """What a record is made of. A field is a key, or keys into nested records joined by dots."""

    text: str = "text"
    id: str = "id"
    id_required: bool = False
    """A record without the id is broken; else it is named after its place."""
    columns: Mapping[str, str] | None = None
    """Name in `Document.meta` -> field; None keeps every column but the text."""
    limit: int = 100_000_000
    """Bytes of the longest record that is read."""
    partitions: Mapping[str, str] = field(default_factory=dict)
    """Columns that the file's path gives, for records that don't have them."""

    def from_json(self, raw: bytes, name: str, number: int, kind: str = "line") -> Document | Broken:
        """The document in a line of JSON, or an ``item`` of an array."""
        where = f"{name}, {kind} {number}"
        try:
            record = DECODER.decode(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            return Broken(where, f"invalid UTF-8 at byte {error.start}", "invalid_utf8")
        except RecursionError:
            return Broken(where, "not valid JSON (nested too deeply)", "bad_json")
        except ValueError as error:
            return Broken(where, f"not valid JSON ({error})", "bad_json")
        return self.from_record(record, where, f"{name}:{number}", escaped=b"\\u" in raw)

    def from_record(self, record: Any, where: str, place: str, *, escaped: bool = True) -> Document | Broken:
        """The document in a parsed record, or why there is none.

        Args:
            where: the record's place, for messages.
            place: the record's place, as the id of a record that has none.
            escaped: whether there may be half surrogate pairs, which only escapes can write.
        """
        if not isinstance(record, Mapping):
            return Broken(where, f"a JSON {type(record).__name__}, not an object", "bad_json")
        text = lookup(record, self.text)
        if not isinstance(text, str):
            return self._no_text(record, text, where)
        if escaped and (half := half_surrogate(text)) is not None:
            return Broken(where, f"half a surrogate pair at character {half} is no Unicode text", "invalid_utf8")
        given = lookup(record, self.id)
        if given is _MISSING or given is None or given == "":
            if self.id_required:
                return Broken(where, f"no {self.id!r}", "no_id")
            given = place
        meta = self._meta(record)
        if escaped:
            given, meta = _clean(str(given)), _clean(meta)
        return Document(str(given), text, meta)

    def _no_text(self, record: Mapping[str, Any], text: Any, where: str) -> Broken:
        if text is _MISSING:
            keys = ", ".join(map(repr, list(record)[:8]))
            return Broken(
                where, f"no key {self.text!r} (there are {keys}; text_field says which is the text)", "no_text"
            )
        if text is None:
            return Broken(where, f"{self.text!r} is null", "null_text")
        return Broken(where, f"{self.text!r} is {type(text).__name__}, not text", "not_text")

    def _meta(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if self.columns is None:
            return {**self.partitions, **without(record, self.text)}
        meta = {}
        for name, path in self.columns.items():
            value = lookup(record, path)
            meta[name] = self.partitions.get(name) if value is _MISSING else value
        return meta


def lookup(record: Mapping[str, Any], path: str) -> Any:
    """The value of a field, or a mark that isn't equal to anything if there is none."""
    value = record.get(path, _MISSING)
    if value is _MISSING and "." in path:
        value = record
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return _MISSING
            value = value[key]
    return value


def without(record: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A record less one field."""
    if path in record or "." not in path:
        return {key: value for key, value in record.items() if key != path}
    head, _, rest = path.partition(".")
    return {key: without(v, rest) if key == head and isinstance(v, Mapping) else v for key, v in record.items()}


def half_surrogate(text: str) -> int | None:
    """Where a string has a surrogate that no UTF-8 can hold; None if nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _clean(value: Any) -> Any:
    """Metadata without half surrogate pairs: they are written out, since a title is no reason to drop a document."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_clean(key): _clean(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value
