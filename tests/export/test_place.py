from __future__ import annotations

import os
from pathlib import Path

import pytest

from slm.config.errors import ConfigError
from slm.export.card import SIGNATURE
from slm.export.place import put, refuse_to_replace


def exported(out: Path, card: str = f"# a model\n{SIGNATURE}\n") -> Path:
    """What an earlier export looks like."""
    out.mkdir(parents=True)
    (out / "config.json").write_text("old")
    (out / "README.md").write_text(card)
    return out


def refused(out: Path, why: str) -> None:
    """`put` refuses as well, and then touches nothing."""
    before = sorted(str(p) for p in Path.cwd().rglob("*"))
    with pytest.raises(ConfigError, match=why):
        refuse_to_replace(out)
    with pytest.raises(ConfigError, match=why), put(out):
        pass
    assert sorted(str(p) for p in Path.cwd().rglob("*")) == before


def test_nothing_of_the_users_is_ever_replaced() -> None:
    """Each of these would be lost for good if the directory were simply made anew."""
    thesis = Path("outer/thesis.txt")
    Path("outer/inner").mkdir(parents=True)
    thesis.write_text("precious")
    refused(Path("outer"), "'inner'")
    refused(Path("outer/inner/.."), "'inner'")
    refused(thesis, "a file or a link")
    run = Path("runs/mine")
    (run / "checkpoints").mkdir(parents=True)
    refused(run, "'checkpoints'")
    refused(exported(Path("theirs"), card="# Somebody's model\n"), "wasn't exported by slm")
    (exported(Path("mixed")) / "notes.md").write_text("mine")
    refused(Path("mixed"), "'notes.md'")
    Path("link").symlink_to(exported(Path("earlier")))
    refused(Path("link"), "a file or a link")
    assert thesis.read_text() == "precious"


def test_the_current_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here").mkdir()
    monkeypatch.chdir("here")
    refused(Path("."), "current directory")


@pytest.mark.parametrize("out", ["new", "a/b/new"])
def test_a_new_directory_appears_whole(out: str) -> None:
    with put(Path(out)) as partial:
        (partial / "config.json").write_text("new")
        assert not Path(out).exists()
    assert [p.name for p in Path(out).parent.iterdir()] == ["new"]
    assert (Path(out) / "config.json").read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert Path(out).stat().st_mode & 0o777 == 0o777 & ~umask  # others may read it as any directory


def test_empty_directories_and_earlier_exports_are_replaced() -> None:
    Path("empty").mkdir()
    for out in (Path("empty"), exported(Path("earlier"))):
        with put(out) as partial:
            (partial / "config.json").write_text("new")
        assert [p.name for p in out.iterdir()] == ["config.json"]
    assert sorted(p.name for p in Path().iterdir()) == ["earlier", "empty"]


def test_a_failure_keeps_the_old_one_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = exported(Path("out"))
    with pytest.raises(KeyboardInterrupt), put(out):
        raise KeyboardInterrupt
    rename = os.rename

    def fails_once_moved(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_once_moved)
    with pytest.raises(OSError, match="No space"), put(out):
        pass
    assert (out / "config.json").read_text() == "old"
    assert [p.name for p in Path().iterdir()] == ["out"]


def test_a_neighbour_named_partial_is_left_alone() -> None:
    Path("out.partial").mkdir()
    Path("out.partial/x").write_text("precious")
    with put(Path("out")):
        pass
    assert Path("out.partial/x").read_text() == "precious"


def test_what_appears_while_the_export_is_made_is_not_lost() -> None:
    making = put(Path("out"))
    making.__enter__()
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"'thesis\.txt'"):
        making.__exit__(None, None, None)
    assert Path("out/thesis.txt").read_text() == "precious"
    assert [p.name for p in Path().iterdir()] == ["out"]
