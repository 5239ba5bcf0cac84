"""Datasets found through `datasets`, without a network: directories, builders, and a hub that is played."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm.config.errors import ConfigError, RunError
from slm.data.document import Broken, Document
from slm.data.sources import Hub, SourcePart
from slm.data.sources import hub as hub_module

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A directory such as the hub has them: a card with two configurations, two splits."""
    root = tmp_path / "dataset"
    for name, rows in {
        "data/train-00000": 30,
        "data/train-00001": 20,
        "data/test-00000": 5,
        "small/train-00000": 3,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        ids = [f"{name}-{i}" for i in range(rows)]
        table = pa.table({"text": [f"text {i}" for i in ids], "id": ids, "score": [1.0] * rows})
        pq.write_table(table, root / f"{name}.parquet", row_group_size=10)
    card = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n"
    card += "  - {split: test, path: data/test-*}\n- config_name: small\n  data_files: small/*\n"
    (root / "README.md").write_text(f"---\n{card}---\n")
    return root


def records(part: SourcePart) -> list[Document | Broken]:
    return [record for unit in part.units() for record in part.read(unit)]


def test_configurations_and_splits_of_a_dataset(dataset: Path) -> None:
    part = Hub(id=str(dataset), columns=("score",))
    docs = records(part)
    assert [d.id for d in docs] == [f"data/train-0000{k}-{i}" for k, n in ((0, 30), (1, 20)) for i in range(n)]  # type: ignore[union-attr]
    assert docs[0] == Document("data/train-00000-0", "text data/train-00000-0", {"score": 1.0})
    assert [u.name for u in part.units(rows=10)][:2] == [
        "data/train-00000.parquet#row=0",
        "data/train-00000.parquet#row=10",
    ]
    assert len(records(part.with_(split="test"))) == 5
    assert len(records(part.with_(config="small"))) == 3
    assert [name for name, *_ in part.state()] == ["data/train-00000.parquet", "data/train-00001.parquet"]


def test_mistakes(dataset: Path) -> None:
    with pytest.raises(ConfigError, match=r"no split 'trian'. Did you mean 'train'\?"):
        Hub(id=str(dataset), split="trian").units()
    with pytest.raises(ConfigError, match=r"'smal' not found. Available: \['default', 'small'\]"):
        Hub(id=str(dataset), config="smal").units()
    with pytest.raises(ConfigError, match=r"Unable to find"):
        Hub(id="json", data_files=("none.jsonl",)).units()
    with pytest.raises(RunError, match=r"'no/such' can't be looked up: .*Is the network there, and the id right"):
        Hub(id="no/such").units()


def test_json_lines_are_read_by_slm_itself_so_that_a_broken_one_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": \n{"text": "c"}\n')
    part = Hub(id="json", data_files=("x.jsonl",), on_error="skip")
    assert [d.text for d in part.documents()] == ["a", "c"]
    with pytest.raises(RunError, match=r"x\.jsonl, line 2.*In the dataset json"):
        list(part.with_(on_error="fail").documents())


def test_formats_that_only_datasets_knows_come_through_it(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text;id;n\nhello;one;1\n;two;2\nbye;;3\n")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: x.csv\n  sep: ';'\n---\n")
    part = Hub(id=str(tmp_path), columns=("n",))
    units = pickle.loads(pickle.dumps(part.units()))
    assert json.loads(units[0].uri) == {"builder": "csv", "options": {"sep": ";"}, "file": str(tmp_path / "x.csv")}
    assert [r for u in units for r in part.read(u)] == [
        Document("one", "hello", {"n": 1}),
        Broken("x.csv, row 1", "'text' is null", "null_text"),
        Document("x.csv:2", "bye", {"n": 3}),
    ]


def test_a_file_that_datasets_cannot_read_is_broken(tmp_path: Path) -> None:
    (tmp_path / "x.weird").write_text('{"text": "a"}\n')
    (tmp_path / "y.weird").write_text('{"text": "a"}\n{"text')
    found = records(Hub(id="json", data_files=("x.weird", "y.weird")))
    assert found[0] == Document("x.weird:0", "a")
    assert isinstance(found[-1], Broken)
    assert found[-1].rule == "truncated_file"


def test_files_behind_a_url(tmp_path: Path) -> None:
    with fsspec.open("memory://hubtest/x.jsonl", "wb") as file:
        file.write(b'{"text": "a", "id": "i"}\n')
    assert records(Hub(id="json", data_files=("memory://hubtest/x.jsonl",))) == [Document("i", "a")]


def test_the_hub_is_asked_once_and_its_answer_names_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub itself is played: a builder as `datasets` makes it, files behind hf:// URLs."""
    asked: list[tuple[Any, ...]] = []
    urls = [f"hf://datasets/org/name@abc123/data/train-{i}.jsonl" for i in range(3)]

    class Config(SimpleNamespace):
        def __init__(self) -> None:
            super().__init__(name="default", data_files={"train": urls})

    def builder(*given: Any) -> Any:
        asked.append(given)
        return SimpleNamespace(name="json", config=Config())

    class Hub_(fsspec.AbstractFileSystem):
        protocol = "hf"

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "type": "file", "size": 14, "blob_id": "b"}

        def _open(self, path: str, *_: Any, **__: Any) -> Any:
            return fsspec.filesystem("memory").open("/hubtest/y.jsonl")

    with fsspec.open("memory://hubtest/y.jsonl", "wb") as file:
        file.write(b'{"text": "a"}\n')
    monkeypatch.setattr(hub_module, "_builder", builder)
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", Hub_)  # type: ignore[attr-defined]
    hub_module._resolve.cache_clear()
    part = Hub(id="org/name")
    assert part.state() == [(f"data/train-{i}.jsonl", 14, "abc123") for i in range(3)]
    assert records(part) == [Document(f"data/train-{i}.jsonl:1", "a") for i in range(3)]
    assert len(asked) == 1
    hub_module._resolve.cache_clear()


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'slm\[hub\]'"):
        Hub(id="json", data_files=("x",)).units()
