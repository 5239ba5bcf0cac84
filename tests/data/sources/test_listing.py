from __future__ import annotations

import io
import os
from pathlib import Path

import fsspec
import pytest

from slm.config.errors import ConfigError, RunError
from slm.data.sources import Local
from slm.data.sources.listing import File, distinct_names, list_files, matches_glob, open_file

LINE = b'{"text": "x", "id": "1"}\n'


@pytest.fixture
def memory(request: pytest.FixtureRequest):
    fs = fsspec.filesystem("memory")
    root = f"/{request.node.name}"
    yield fs, root
    if fs.exists(root):
        fs.rm(root, recursive=True)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*", "a.txt", True),
        ("*", "b/a.txt", False),
        ("**/*", "a.txt", True),
        ("**/*", "c/b/a.txt", True),
        ("data/*/*", "data/x/a.txt", True),
        ("data/*/*", "data/x/y/a.txt", False),
        ("data/**/a*", "data/a.txt", True),
        ("data/*_[A-Z]*/*", "data/rus_Cyrl/a.txt", True),
        ("data/*_[A-Z]*/*", "data/rus_cyrl/a.txt", False),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert matches_glob(name, pattern) is fits


def test_hidden_and_half_downloaded_files_are_no_data(tmp_path: Path) -> None:
    for name in ("a.jsonl", ".b.jsonl", ".cache/c.jsonl", "d.jsonl.incomplete", "dataset_info.json", "e.jsonl.zst.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    assert [f.name for f in Local(paths=(str(tmp_path),)).files()] == ["a.jsonl"]


def test_links_to_directories_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "a.jsonl").write_bytes(LINE)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "deep" / "loop").symlink_to(tmp_path / "far")
    assert [f.name for f in Local(paths=("here",)).files()] == ["link/deep/a.jsonl"]
    (tmp_path / "here" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"gone\.jsonl: .*A link to a file that is gone"):
        Local(paths=("here",)).files()


def test_names_are_below_what_was_given_and_all_different(tmp_path: Path) -> None:
    for name in ("x/sub/a.jsonl", "y/sub/a.jsonl", "y/b.jsonl", "z/y/sub/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    names = lambda *paths: [f.name for f in Local(paths=paths).files()]  # noqa: E731
    assert names("x") == ["sub/a.jsonl"]
    assert names("x", "y") == ["sub/a.jsonl", "b.jsonl", "y/sub/a.jsonl"]
    assert len(set(names("x", "y", "z/y"))) == 4
    assert names("x", "x/sub/a.jsonl", "./x") == ["sub/a.jsonl"]  # named thrice, read once
    assert names("y/sub/*.jsonl") == ["a.jsonl"]
    assert names("[xy]/**/*.jsonl") == ["x/sub/a.jsonl", "y/b.jsonl", "y/sub/a.jsonl"]
    assert names(str(tmp_path / "x" / "sub" / "a.jsonl")) == ["a.jsonl"]


def test_a_name_in_use_gets_as_many_directories_as_it_needs() -> None:
    files = [File(f"/r/{p}/q/n", "n", 1) for p in "abca"]
    assert [f.name for f in distinct_names(files)] == ["n", "q/n", "c/q/n"]


def test_a_path_with_wildcard_characters_may_exist(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(LINE)
    assert [f.name for f in Local(paths=("a[1].jsonl",)).files()] == ["a[1].jsonl"]


def test_state_changes_with_the_contents(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(LINE)
    source = Local(paths=("a.jsonl",))
    before = source.state()
    assert before[0][:2] == ("a.jsonl", len(LINE))
    os.utime(file, ns=(1, 2))
    assert source.state() != before


def test_directories_patterns_and_files_behind_a_url(memory) -> None:
    fs, root = memory
    for name in ("d/a.jsonl", "d/sub/b.jsonl.gz", "d/c.bin", "d/.hidden.jsonl"):
        with fs.open(f"{root}/{name}", "wb") as file:
            file.write(LINE)
    names = lambda path: [f.name for f in list_files(f"memory:/{root}{path}").files]  # noqa: E731
    assert names("/d/a.jsonl") == ["a.jsonl"]
    assert sorted(names("/d/*.jsonl")) == ["a.jsonl"]
    assert sorted(names("/d/**/*.jsonl*")) == ["a.jsonl", "sub/b.jsonl.gz"]
    source = Local(paths=(f"memory:/{root}/d",))
    assert [f.name for f in source.files()] == ["a.jsonl", "sub/b.jsonl.gz"]
    assert [u.bytes for u in source.units(size=3)] == [25, 25]  # not cut: that would read it twice
    assert next(source.read(source.units()[0])).id == "1"  # type: ignore[union-attr]
    assert all(tag for _, _, tag in source.state())


def test_what_a_url_does_not_have(memory) -> None:
    with pytest.raises(ConfigError, match="names no file"):
        list_files("memory://nowhere/x.jsonl")
    with pytest.raises(ConfigError, match="Protocol not known: nope"):
        list_files("nope://x")


def test_a_file_of_unknown_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.AbstractFileSystem, "isfile", lambda *_: True)
    monkeypatch.setattr(Failing, "info", lambda _, path: {"name": path, "type": "file", "size": None})
    fsspec.register_implementation("failing", Failing, clobber=True)
    with pytest.raises(RunError, match="doesn't say how long"):
        list_files("failing://x.jsonl")


def test_file_names_that_are_no_unicode(tmp_path: Path) -> None:
    Path(os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b'{"text": "a"}')
    [doc] = Local(paths=(".",)).documents()
    assert doc.id == "caf\\xe9.jsonl:1"


class Failing(fsspec.AbstractFileSystem):
    protocol = "failing"

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "type": "file", "size": 100}

    def _open(self, path: str, *_: object, **__: object):
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise OSError("connection reset")

        return Broken(bytes(100))


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.zst", "x.jsonl.gz", "x.parquet", "x.txt"])
def test_a_network_that_fails_is_never_taken_for_a_damaged_file(name: str) -> None:
    fsspec.register_implementation("failing", Failing, clobber=True)
    source = Local(paths=(f"failing://{name}",), on_error="skip")
    with pytest.raises(RunError, match="connection reset"):
        [record for unit in source.units() for record in source.read(unit)]


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be opened"):
        open_file(str(tmp_path / "none"))
