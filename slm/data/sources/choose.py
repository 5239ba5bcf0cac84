"""What is typed as a source on a command line, and the part that it means.

====================================  ==========================================================
``stdlib``                            a source by its name
``fineweb_edu:/data/fineweb-edu``     name and path (for ``hub``: name and id)
``dclm:/data/dclm,global_shards=1``   and settings, as in YAML
``synthetic:count=10000,seed=1``      settings only
``/data/dclm``, ``'texts/*.jsonl'``   files; a directory of a known layout is read as that
``s3://bucket/texts``                 the same, through fsspec
``hub:HuggingFaceFW/fineweb-edu``     a dataset of the Hugging Face hub
====================================  ==========================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from slm.config.errors import ConfigError, suggest
from slm.data.sources.base import SourcePart, source
from slm.data.sources.files import SEARCHED, FileSource
from slm.data.sources.listing import File, Listing, is_url, list_files
from slm.data.sources.parquet import footer
from slm.data.sources.records import DECODER
from slm.data.sources.streams import COMPRESSIONS, DamagedError, TooLong, chunks, split_lines

_NAMED = re.compile(r"(?P<name>[A-Za-z_]\w*):(?P<rest>.*)", re.DOTALL)
_SETTING = re.compile(r"(?P<key>[a-z_]+)=(?P<value>.*)", re.DOTALL)
PEEK_BYTES = 16 << 20


def source_of(text: str, say: Callable[[str], None] | None = None) -> SourcePart:
    """The source that a text on the command line means.

    Args:
        say: called with a sentence if the layout of a directory was recognised.

    Raises:
        ConfigError: no such source, setting or file, with the nearest that there is.
    """
    named = None if is_url(text) or os.path.exists(text) else _NAMED.fullmatch(text)
    if text in source.parts:
        return source.parse(text)
    if named and named["name"] in source.parts:
        return _with_settings(named["name"], named["rest"])
    if named:
        raise ConfigError(f"Unknown source {named['name']!r} in {text!r}. {suggest(named['name'], source.parts)}")
    return _of_path(text, say or (lambda _: None))


def _with_settings(name: str, rest: str) -> SourcePart:
    """The part ``name`` with ``VALUE,key=value,...``."""
    cls = source.get(name)
    first, settings = list[str](), dict[str, Any]()
    for item in _split(rest):
        setting = _SETTING.fullmatch(item)
        if setting and (first or settings or setting["key"] in ("path", *cls.model_fields) or not cls.positional):
            settings[setting["key"]] = _value(setting["value"], item)
        elif settings:
            raise ConfigError(f"{name}: expected key=value after a comma, found {item!r}.")
        else:
            first.append(item)  # a path may have a comma in it
    if first:
        if not cls.positional:
            raise ConfigError(
                f"The source {name!r} takes no {','.join(first)!r}, only settings such as {name}:key=value."
            )
        settings[cls.positional] = ",".join(first)
    return source.parse({"name": name, **settings})


def _split(text: str) -> Iterator[str]:
    """Split at commas that stand outside brackets."""
    depth, item = 0, ""
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            yield item
            item = ""
        else:
            item += character
    if item:
        yield item


def _value(text: str, item: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{item!r}: the value is not YAML.") from None


def _of_path(text: str, say: Callable[[str], None]) -> SourcePart:
    try:
        listing = list_files(text)
    except ConfigError as error:
        hints = [f"Sources with names: {', '.join(source.parts)}."]
        if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
            hints.insert(0, f"For a dataset of the Hugging Face hub, write hub:{text}.")
        near = suggest(text, source.parts)
        if near.startswith("Did you mean"):
            hints = [near]
        raise ConfigError(f"{error} {' '.join(hints)}") from None
    known = recognise(text, listing) if listing.directory else []
    if not known:
        return source.parse({"name": "local", "paths": (text,)})
    ways = [_typed(text, part, settings) for part, settings in known]
    if len(known) > 1:
        raise ConfigError(
            f"{text} could be read in several ways. Write {', '.join(ways[:-1])} or {ways[-1]}; or local:{text} for all of it."
        )
    part = known[0][0]
    read, there = len(part.files()), sum(file.name.endswith(SEARCHED) for file in listing.files)
    say(
        f"{text} is read as {ways[0]}, by its directories and columns ({read} of {there} data files). "
        f"To read all of it as plain files, write local:{text}."
    )
    return part


def _typed(text: str, part: FileSource, settings: dict[str, Any]) -> str:
    return ",".join([f"{part.part_name}:{text}", *(f"{key}={value}" for key, value in settings.items())])


def recognise(path: str, listing: Listing) -> list[tuple[FileSource, dict[str, Any]]]:
    """The layouts that a directory has, with their settings: files that lie as theirs do, the first with their columns."""
    found: list[tuple[FileSource, dict[str, Any]]] = []
    columns: dict[str, frozenset[str]] = {}
    for cls in source.parts.values():
        if not issubclass(cls, FileSource):
            continue
        for settings in cls.variants:
            part = cls.model_validate({"paths": (path,), **settings})
            layout = part.layout()
            try:
                file = listing.select(layout.globs, layout.suffixes, layout.inside)[0] if layout.signs else None
            except ConfigError:
                continue
            if file is not None and file.uri not in columns:
                columns[file.uri] = _columns(file)
            if file is not None and layout.signs <= columns[file.uri]:
                found.append((part, settings))
    return found


def _columns(file: File) -> frozenset[str]:
    """The fields of a file, by its footer or its first line; none if that can't be read."""
    if file.name.endswith(".parquet"):
        end = footer(file.uri, file.size, file.tag)
        return frozenset() if isinstance(end, str) else end.fields()
    compression = next((kind for suffix, kind in COMPRESSIONS.items() if file.name.endswith(suffix)), None)
    try:
        line = next(split_lines(chunks(file.uri, file.size, compression=compression), PEEK_BYTES), b"")
        record = None if isinstance(line, TooLong) else DECODER.decode(line.decode())
    except (DamagedError, ValueError, RecursionError):
        return frozenset()
    if not isinstance(record, dict):
        return frozenset()
    return frozenset([*record, *(f"{k}.{n}" for k, inner in record.items() if isinstance(inner, dict) for n in inner)])
