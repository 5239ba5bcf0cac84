"""Any dataset of the Hugging Face hub, by its id: `datasets` finds its files, once, and slm's readers stream them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import pydantic

from slm.config.errors import ConfigError, RunError, suggest
from slm.data.document import Broken, Document, Unit
from slm.data.sources.base import source
from slm.data.sources.files import SUFFIXES, Layout, RecordSource
from slm.data.sources.listing import File, distinct_names, list_files

_OURS = ("parquet", "json", "text")
"""Builders of `datasets` whose files slm's own readers take: they account for every record."""
_ON_HUB = re.compile(r"hf://datasets/[^@]+@(?P<revision>[^/]+)/(?P<name>.+)")


@source.register("hub")
class Hub(RecordSource):
    """A dataset of the Hugging Face hub (or a directory, or a builder such as ``csv``), found through `datasets`.

    The hub is asked once which files there are and at which revision; they are then streamed from it, while
    tokenising and never during training. Needs ``pip install slm[hub]``.
    """

    positional: ClassVar[str] = "id"

    id: str = pydantic.Field(pattern=r"^[^?]+$")
    """Such as ``HuggingFaceFW/fineweb-edu``; a local directory; or ``csv``, ``json``, ``arrow``, ... with ``data_files``."""
    config: str = ""
    """The dataset's configuration (subset); empty: its default."""
    split: str = "train"
    """Which of its splits."""
    revision: str = ""
    """Branch, tag or commit; empty: the newest. What it was is recorded with the store."""
    data_files: tuple[str, ...] = ()
    """Patterns within the dataset, or files for a builder; empty: what the dataset's card says."""

    def layout(self) -> Layout:
        return Layout()

    def files(self) -> list[File]:
        return [file for file, _ in self._found()]

    def _found(self) -> list[tuple[File, str]]:
        at_home = self.id in ("", ".") or os.path.exists(self.id) or self.data_files  # may change while slm runs
        resolve = _resolve.__wrapped__ if at_home else _resolve
        return resolve(self.id, self.config, self.split, self.revision, self.data_files)

    def units(self, *args: int, **cut: int) -> list[Unit]:
        found = self._found()
        foreign = {file.uri: Unit(file.name, builder, file.size) for file, builder in found if builder}
        if not foreign:
            return super().units(*args, **cut)
        return [foreign.get(file.uri) or Unit(file.name, file.uri, file.size) for file, _ in found]

    def read(self, unit: Unit) -> Iterator[Document | Broken]:
        if unit.uri.startswith("{"):
            return self._read_through_datasets(unit)
        return super().read(unit)

    def _read_through_datasets(self, unit: Unit) -> Iterator[Document | Broken]:
        fields, how = self._fields(unit.name), json.loads(unit.uri)
        row = -1
        try:
            rows = _datasets().load_dataset(
                how["builder"], data_files={"train": [how["file"]]}, split="train", streaming=True, **how["options"]
            )
            for row, record in enumerate(rows):
                yield fields.from_record(record, f"{unit.name}, row {row}", f"{unit.name}:{row}")
        except OSError as error:
            raise RunError(f"{how['file']}: can't be read ({error}).") from None
        except Exception as error:  # each builder of datasets has errors of its own
            yield Broken(f"{unit.name}, after row {row}", f"can't be read to its end ({error})", "truncated_file")

    def _whereabouts(self) -> str:
        return f" (In the dataset {self.id}.)"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError("The source 'hub' needs the package datasets: pip install 'slm[hub]'.") from None
    return datasets


@lru_cache(32)
def _resolve(name: str, config: str, split: str, revision: str, data_files: tuple[str, ...]) -> list[tuple[File, str]]:
    """The files of a split, and for those that slm's own readers don't take, how `datasets` reads them.

    One question to the hub, whose answer names the revision that every file is then read at.
    """
    builder = _builder(name, config, revision, data_files)
    splits = builder.config.data_files or {}
    if split not in map(str, splits):
        raise ConfigError(f"The dataset {name!r} has no split {split!r}. {suggest(split, map(str, splits))}")
    options = _options(builder.config)
    files = []
    for uri in next(found for key, found in splits.items() if str(key) == split):
        file = _file(str(uri), name)
        ours = builder.name in _OURS and not options and file.name.lower().endswith(SUFFIXES)
        how = "" if ours else json.dumps({"builder": builder.name, "options": options, "file": file.uri})
        files.append((file, how))
    names = {file.uri: file for file in distinct_names(file for file, _ in files)}
    return [(names[file.uri], how) for file, how in files]


def _builder(name: str, config: str, revision: str, data_files: tuple[str, ...]) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset_builder(
            name, config or None, revision=revision or None, data_files=list(data_files) or None
        )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"The dataset {name!r} can't be used: {error}") from None
    except Exception as error:  # whatever the network, the hub or a card has to say
        raise RunError(
            f"The dataset {name!r} can't be looked up: {error}. Is the network there, and the id right?"
        ) from None


def _options(config: Any) -> dict[str, Any]:
    """Settings of a builder that the dataset's card gives, such as the separator of a csv file."""
    usual = type(config)()
    common = {"name", "version", "data_dir", "data_files", "description", "features"}
    return {k: v for k, v in vars(config).items() if k not in common and v != getattr(usual, k, None)}


def _file(uri: str, dataset: str) -> File:
    listed = list_files(uri).files[0]
    if on_hub := _ON_HUB.match(uri):
        return File(uri, on_hub["name"], listed.size, on_hub["revision"])
    root = os.path.abspath(dataset) + "/"
    return replace(listed, name=listed.uri.removeprefix(root)) if listed.uri.startswith(root) else listed
