from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from slm.config.errors import ConfigError, RunError
from slm.data.curate import fasttext_file
from slm.data.curate.filters import Filter
from slm.data.curate.quality import Quality
from slm.data.document import Document

GOOD = ["theorem", "proof", "explain", "because", "therefore", "equation", "energy", "cell"]
BAD = ["buy", "cheap", "click", "now", "free", "shipping", "casino", "login"]

TRAIN = """
import sys, fasttext
folder, quiet = sys.argv[1], dict(thread=1, verbose=0, bucket=1000, dim=8)
model = fasttext.train_supervised(f"{folder}/lines.txt", wordNgrams=2, epoch=10, **quiet)
model.save_model(f"{folder}/model.bin")
model.quantize(input=f"{folder}/lines.txt", qnorm=True, thread=1)
model.save_model(f"{folder}/model.ftz")
fasttext.train_unsupervised(f"{folder}/lines.txt", epoch=1, minCount=1, **quiet).save_model(f"{folder}/vectors.bin")
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, really trained. Its trainer reads memory that it never wrote: the variable makes that memory zeros."""
    pytest.importorskip("fasttext")
    folder, rng = tmp_path_factory.mktemp("models"), random.Random(0)
    lines = [
        f"__label__{name} {' '.join(rng.choices(words, k=8))}\n" for name, words in (("hq", GOOD), ("cc", BAD)) * 400
    ]
    (folder / "lines.txt").write_text("".join(lines))
    code = subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder)], env={**os.environ, "MALLOC_PERTURB_": "255"}, capture_output=True
    )
    if b"train_supervised" in code.stderr and b"AttributeError" in code.stderr:
        pytest.skip("this fasttext can't train (fasttext-predict)")
    assert code.returncode == 0, code.stderr.decode()
    return folder


@pytest.mark.parametrize("name", ["model.bin", "model.ftz"])
def test_scores_tell_good_from_bad_and_are_columns_for_filters(models: Path, name: str) -> None:
    scorer = Quality(model=str(models / name), label="hq").load()
    good, bad = (Document(str(i), "\n".join(words), {"score": 1}) for i, words in enumerate((GOOD, BAD)))
    good, bad = scorer.annotate(good), scorer.annotate(bad)
    assert good.meta.keys() == {"score", "quality"}
    assert 0.9 < good.meta["quality"] <= 1
    assert 0 <= bad.meta["quality"] < 0.1
    keep = Filter.parse("quality >= 0.5 and score == 1")
    assert keep.keep(good)
    assert not keep.keep(bad)
    assert scorer.scores([good.text, bad.text]) == [good.meta["quality"], bad.meta["quality"]]


def test_a_text_is_one_line_and_labels_add_up(models: Path) -> None:
    one = Quality(model=str(models / "model.bin"), label="hq").load()
    other = Quality(model=str(models / "model.bin"), label="__label__cc", column="spam").load()
    for text in ("proof of\nthe theorem\r\n", "buy\u2028now", "", "\n", "zzz", "\ud800 x", "a\0b"):
        p, q = one.score(text), other.score(text)
        assert p is not None
        assert q is not None
        assert p + q == pytest.approx(1, abs=1e-4)
    assert one.score("proof\ntheorem") == one.score("proof theorem")
    assert other.annotate(Document("d", "x")).meta == {"spam": other.score("x")}


def test_what_the_user_gets_wrong_is_explained(models: Path) -> None:
    path = str(models / "model.bin")
    with pytest.raises(ConfigError, match=r"model\.bin has no label 'hqs'\. Did you mean 'hq'"):
        Quality(model=path, label="__label__hqs").load()
    with pytest.raises(ConfigError, match=r"models\.bin is no file\. Did you mean 'model\.bin'"):
        Quality(model=str(models / "models.bin"), label="hq").load()
    with pytest.raises(RunError, match=r"vectors\.bin: holds word vectors"):
        Quality(model=str(models / "vectors.bin"), label="hq").load()
    with pytest.raises(RunError, match=r"lines\.txt: fastText can't read this: not one of its binary models"):
        Quality(model=str(models / "lines.txt"), label="hq").load()
    with pytest.raises(ConfigError, match=r"column 'quality' already \(document 'd'\)"):
        Quality(model=path, label="hq").load().annotate(Document("d", "x", {"quality": 1}))
    with pytest.raises(ConfigError, match="'bytes' is a column that every document has"):
        Quality(model=path, label="hq", column="bytes")


def test_a_missing_package_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(ConfigError, match=r"pip install 'slm\[quality\]'"):
        Quality(model=str(models / "model.bin"), label="hq").load()


@pytest.mark.parametrize("name", ["model.bin", "model.ftz"])
def test_every_cut_file_is_refused(models: Path, tmp_path: Path, name: str) -> None:
    """fastText itself would predict nothing, or end the process."""
    raw, path = (models / name).read_bytes(), tmp_path / "cut.bin"
    assert sorted(fasttext_file.labels(models / name)) == ["__label__cc", "__label__hq"]
    for size in [*range(0, 120, 7), *range(200, len(raw), len(raw) // 50), len(raw) - 1]:
        path.write_bytes(raw[:size])
        with pytest.raises(RunError, match=r"cut\.bin"):
            fasttext_file.labels(path)
    path.write_bytes(raw + b"x")
    with pytest.raises(RunError, match="1 bytes follow the end"):
        fasttext_file.labels(path)
    path.write_bytes(struct.pack("<ii", fasttext_file.MAGIC, 99) + raw[8:])
    with pytest.raises(RunError, match="version 99"):
        fasttext_file.labels(path)


def test_the_hash_is_that_of_the_file(models: Path, tmp_path: Path) -> None:
    before = Quality(model=str(models / "model.bin"), label="hq").sha256()
    shutil.copy(models / "model.bin", tmp_path / "other.bin")
    assert Quality(model=str(tmp_path / "other.bin"), label="hq").sha256() == before
    with (tmp_path / "other.bin").open("ab") as file:
        file.write(b"x")
    assert Quality(model=str(tmp_path / "other.bin"), label="hq").sha256() != before
