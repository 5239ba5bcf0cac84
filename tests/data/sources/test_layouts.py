"""Look-alikes of public corpora, read by their layouts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from slm.config.errors import ConfigError
from slm.data.document import Broken, Document
from slm.data.sources import FileSource, Layout, Local, SourcePart, source, source_of
from slm.data.sources.curated import Dolma, Finemath, Pile, SmollmCorpus, Starcoder
from slm.data.sources.lookalike import LOOKALIKES, Made, write_lookalike
from slm.data.sources.web import FASTTEXT, Dclm, DclmParquet, Fineweb2, FinewebEdu, NemotronCC, Txt360

CASES: dict[str, tuple[type[FileSource], dict[str, Any], set[str]]] = {
    "fineweb_edu": (FinewebEdu, {}, {"url", "dump", "language", "language_score", "token_count", "score", "int_score"}),
    "fineweb_edu_sample": (FinewebEdu, {"config": "sample-10BT"}, {"date", "int_score"}),
    "dclm": (Dclm, {}, {"url", FASTTEXT, "language_score", "date", "previous_word_count"}),
    "dclm_parquet": (DclmParquet, {}, {"url", FASTTEXT}),
    "smollm_fineweb_edu_dedup": (SmollmCorpus, {"subset": "fineweb-edu-dedup"}, {"score", "int_score", "url"}),
    "smollm_cosmopedia": (SmollmCorpus, {"subset": "cosmopedia-v2"}, {"audience", "format", "token_length"}),
    "finemath": (Finemath, {}, {"url", "token_count", "score", "int_score"}),
    "dolma": (Dolma, {}, {"source", "created", "url"}),
    "starcoder": (Starcoder, {}, {"max_stars_repo_path", "max_stars_repo_name"}),
    "pile": (Pile, {}, {"pile_set_name"}),
    "fineweb2": (Fineweb2, {}, {"language_script", "minhash_cluster_size"}),
    "txt360": (Txt360, {}, {"subset", "url"}),
    "nemotron_cc": (NemotronCC, {}, {"quality", "kind", "kind2", "url"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("corpora")
    return {name: write_lookalike(name, root / name, 0.4) for name in LOOKALIKES}


def records(part: SourcePart) -> list[Document | Broken]:
    return [record for unit in part.units() for record in part.read(unit)]


def test_every_layout_has_a_look_alike() -> None:
    layouts = {cls for cls in source.parts.values() if issubclass(cls, FileSource)} - {Local}
    assert layouts == {cls for cls, _, _ in CASES.values()}
    assert set(LOOKALIKES) - set(CASES) == {"smollm_python_edu"}


@pytest.mark.parametrize("name", CASES)
def test_every_document_is_read_with_its_id_and_columns(made: dict[str, Made], name: str) -> None:
    cls, settings, full = CASES[name]
    part = cls(paths=(str(made[name].root),), **settings)
    found = records(part)
    assert not [r for r in found if isinstance(r, Broken)]
    docs = [r for r in found if isinstance(r, Document)]
    assert len(docs) == made[name].documents
    assert len({d.id for d in docs}) == len(docs)
    if name != "starcoder":  # there the text is made to look like code
        assert sum(len(d.text.encode()) for d in docs) == made[name].bytes
    for doc in docs:
        assert set(doc.meta) == set(part.layout().columns)
        assert not [column for column in full if doc.meta[column] is None]
    assert {f.name for f in part.files()} == {p.relative_to(made[name].root).as_posix() for p in made[name].files}


@pytest.mark.parametrize("name", CASES)
def test_a_directory_is_recognised_and_said_so(made: dict[str, Made], name: str) -> None:
    cls, settings, _ = CASES[name]
    said: list[str] = []
    part = source_of(str(made[name].root), said.append)
    assert part == cls(paths=(str(made[name].root),), **settings)
    assert f"is read as {cls.part_name}:" in said[0]
    assert "4 of 4 data files" in said[0]
    assert source_of(f"local:{made[name].root}") == Local(paths=(str(made[name].root),))


@pytest.mark.parametrize("name", ["fineweb_edu", "dclm", "starcoder", "fineweb2", "pile"])
def test_a_directory_within_the_dataset_can_be_given(made: dict[str, Made], name: str) -> None:
    folder = made[name].files[0].parent
    part = source_of(str(folder))
    assert type(part) is CASES[name][0]
    assert [f.uri for f in part.files()] == sorted(str(p) for p in made[name].files if p.parent == folder)  # type: ignore[attr-defined]


def test_a_column_that_some_files_lack_is_null_there(made: dict[str, Made]) -> None:
    dates: dict[bool, set[bool]] = {True: set(), False: set()}
    part = FinewebEdu(paths=(str(made["fineweb_edu"].root),))
    for unit in part.units():
        for doc in part.read(unit):
            dates["2013-20" in unit.name].add(doc.meta["date"] is None)  # type: ignore[union-attr]
    assert dates == {True: {True}, False: {False}}


def test_parts_of_a_dataset_are_chosen_and_misspelt_ones_named(made: dict[str, Made]) -> None:
    def names(cls: type[FileSource], name: str, **settings: Any) -> list[str]:
        return [f.name for f in cls(paths=(str(made[name].root),), **settings).files()]

    assert names(FinewebEdu, "fineweb_edu", config="CC-MAIN-2024-10") == [
        f"data/CC-MAIN-2024-10/train-0000{i}-of-00020.parquet" for i in (0, 1)
    ]
    shards = names(Dclm, "dclm", global_shards=[2], local_shards=[0, 1])
    assert [s.split("/shard_")[0] for s in shards] == [f"global-shard_02_of_10/local-shard_{i}_of_10" for i in (0, 1)]
    assert len(names(Dclm, "dclm", local_shards=[1])) == 2
    assert {n.split("/")[1] for n in names(Fineweb2, "fineweb2", languages=["rus_Cyrl"])} == {"rus_Cyrl"}
    assert {n.split("/")[1] for n in names(Dolma, "dolma", sources=["pes2o"])} == {"pes2o"}
    assert {n.split("/")[0] for n in names(Starcoder, "starcoder", languages=["ada"])} == {"ada"}
    assert {n.split("/")[0] for n in names(NemotronCC, "nemotron_cc", qualities=["high"])} == {"quality=high"}
    with pytest.raises(ConfigError, match=r"In data: Did you mean 'CC-MAIN-2024-10'\?"):
        names(FinewebEdu, "fineweb_edu", config="CC-MAIN-2024-11")
    with pytest.raises(ConfigError, match=r"Did you mean 'local-shard_1_of_10'\?"):
        names(Dclm, "dclm", global_shards=[1], local_shards=[1, 7])
    with pytest.raises(ConfigError, match=r"In data: Did you mean 'rus_Cyrl'\?"):
        names(Fineweb2, "fineweb2", languages=["rus_Cyr"])
    with pytest.raises(ConfigError, match="In this directory: There are: sample"):
        names(FinewebEdu, "fineweb_edu_sample")


def test_dclm_with_either_suffix_null_fields_and_broken_lines(tmp_path: Path) -> None:
    made = write_lookalike("dclm", tmp_path, 1.0, broken_lines=5)
    made.files[0].rename(made.files[0].with_suffix(".zstd"))
    found = records(Dclm(paths=(str(tmp_path),), columns=("metadata.WARC-Identified-Payload-Type", "warcinfo")))
    assert len([r for r in found if isinstance(r, Document)]) == made.documents
    assert [r.rule for r in found if isinstance(r, Broken)] == ["bad_json"] * 5 == ["bad_json"] * made.broken
    for column in ("metadata.WARC-Identified-Payload-Type", "warcinfo"):
        assert {d.meta[column] is None for d in found if isinstance(d, Document)} == {True, False}


def test_python_edu_has_no_text_and_says_where_it_is(made: dict[str, Made]) -> None:
    part = SmollmCorpus(paths=(str(made["smollm_python_edu"].root),), subset="python-edu", on_error="skip")
    with pytest.raises(ConfigError, match=r"no column 'text'. python-edu names files .*Software Heritage.*fetched"):
        part.units()


def test_a_directory_that_could_be_two_things_is_refused(made: dict[str, Made], tmp_path: Path) -> None:
    shutil.copytree(made["fineweb_edu"].root, tmp_path / "x")
    shutil.copytree(made["fineweb_edu_sample"].root, tmp_path / "x", dirs_exist_ok=True)
    with pytest.raises(
        ConfigError, match=r"several ways. Write fineweb_edu:x or fineweb_edu:x,config=sample-10BT; or local:x"
    ):
        source_of("x")


def test_a_layout_of_ones_own_is_a_few_lines(tmp_path: Path) -> None:
    class Diaries(FileSource):
        """Diaries."""

        def layout(self) -> Layout:
            return Layout(("[0-9]*/*",), (".jsonl",), text="entry", columns={"year": "date.year"})

    (tmp_path / "1660").mkdir()
    (tmp_path / "1660" / "jan.jsonl").write_text('{"entry": "Up betimes.", "date": {"year": 1660}}\n')
    assert list(Diaries(paths=(str(tmp_path),)).documents()) == [
        Document("1660/jan.jsonl:1", "Up betimes.", {"year": 1660})
    ]
