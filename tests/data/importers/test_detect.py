from __future__ import annotations

import json
from pathlib import Path

import pytest
from token_files import DOCUMENTS, flat, packed, write_datatrove, write_llmc, write_megatron, write_olmo

from slm.config.errors import ConfigError
from slm.data.importers import detect, importer
from slm.data.importers.llmc import Llmc
from slm.data.importers.olmo import Olmo


def test_a_folder_of_one_format(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text("tokens")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "no tokens"}) + "\n")
    write_megatron(folder / "a.bin", [[d] for d in DOCUMENTS])
    assert detect(tmp_path) == "megatron"


def test_several_formats_are_named(tmp_path: Path) -> None:
    write_llmc(tmp_path / "a.bin", flat(DOCUMENTS))
    write_datatrove(tmp_path / "b.ds", DOCUMENTS)
    with pytest.raises(
        ConfigError, match=r"several formats: datatrove \(b\.ds.*\); llmc \(a\.bin\)|several formats: llmc"
    ):
        detect(tmp_path)
    assert detect(tmp_path / "a.bin") == "llmc"


def test_nothing_known_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(packed([1, 2, 3] * 400))  # nanoGPT's has no header: nothing to know it by
    (tmp_path / "orphan.csv.gz").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"no format of ready-made tokens that slm knows \(columns, datatrove, .*olmo\)"
    ):
        detect(tmp_path)
    with pytest.raises(ConfigError, match=r"doesn't exist\. Did you mean 'train\.bin'"):
        detect(tmp_path / "trian.bin")
    with pytest.raises(ConfigError, match="no llmc files are in it"):
        Llmc().files(tmp_path)
    with pytest.raises(ConfigError, match=r"doesn't exist\. Did you mean 'train\.bin'"):
        Llmc().files(tmp_path / "trian.bin")


def test_headerless_ids_of_others_are_read_by_name(tmp_path: Path) -> None:
    path = write_olmo(tmp_path / "train.bin", [[*d, 99] for d in DOCUMENTS])
    file = Olmo(eos=99, dtype="u16").read(Olmo().files(path)[0], 100)
    assert [file.read(i).tolist() for i in range(4)] == DOCUMENTS


def test_every_field_says_what_it_means() -> None:
    from slm.config.describe import describe_part

    for name in importer.parts:
        [part] = [p for p in describe_part(name) if p["slot"] == "importer"]
        assert part["summary"]
        assert part["paper"]
        assert all(field["meaning"] for field in part["fields"]), part
