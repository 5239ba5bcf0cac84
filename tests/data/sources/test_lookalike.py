from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from slm.config.errors import ConfigError
from slm.data.sources.lookalike import LOOKALIKES, write_lookalike
from slm.data.sources.prose import Prose


def texts(count: int, **settings: object) -> list[str]:
    return [text for text, _ in islice(Prose(**settings).documents(), count)]  # type: ignore[arg-type]


def test_the_seed_alone_decides_and_longer_begins_with_shorter() -> None:
    assert texts(400)[:300] == texts(300)
    assert texts(3) != texts(3, seed=1)


def test_it_looks_like_english() -> None:
    docs = texts(2000)
    lengths = np.array([len(d) for d in docs])
    assert 3500 < lengths.mean() < 5000  # about a thousand tokens
    assert 0.7 < np.log(lengths).std() < 1.1
    counts = Counter(w.strip(".,").lower() for d in docs[:300] for w in d.split())
    ranked = np.array(sorted(counts.values(), reverse=True))
    slope = np.polyfit(np.log(np.arange(10, 1000)), np.log(ranked[10:1000]), 1)[0]
    assert -1.3 < slope < -0.8  # Zipf
    assert len(counts) > 10_000
    assert all(d[0].isupper() or d[0].isdigit() for d in docs)
    assert 0.3 < np.mean(["\n\n" in d for d in docs]) <= 1
    assert sum(d.count(". ") for d in docs) > 20_000
    assert len(set(docs)) == len(docs)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_duplicates_on_request(share: float) -> None:
    docs = texts(2000, duplicates=share)
    assert 1 - len(set(docs)) / len(docs) == pytest.approx(share, abs=0.03)


def test_other_scripts_are_other_bytes() -> None:
    [latin], [cyrillic] = texts(1), texts(1, script="Cyrl")
    assert len(latin) == len(cyrillic)
    assert sum("\u0400" < c < "\u0500" for c in cyrillic) > 0.7 * len(cyrillic)


def test_files_are_the_same_bytes_every_time_and_about_as_big_as_asked(tmp_path: Path) -> None:
    for name in ("fineweb_edu", "dclm", "txt360"):
        one, two = (write_lookalike(name, tmp_path / name / str(i), 1.5, duplicates=0.2, seed=3) for i in range(2))
        assert 1.5e6 <= one.bytes < 1.8e6
        assert [p.read_bytes() for p in one.files] == [p.read_bytes() for p in two.files]


def test_fineweb_edu_has_small_row_groups_two_codecs_and_files_without_a_date(tmp_path: Path) -> None:
    made = write_lookalike("fineweb_edu", tmp_path, 10, files=2)
    metas = [pq.ParquetFile(path).metadata for path in made.files]
    assert {m.row_group(0).num_rows for m in metas} == {1000}
    assert {m.row_group(0).column(0).compression for m in metas} == {"SNAPPY", "ZSTD"}
    assert ["date" in m.schema.names for m in metas] == [False, True]
    assert sum(m.num_rows for m in metas) == made.documents


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'fineweb_edu'\?"):
        write_lookalike("fineweb-edu", tmp_path)
    assert len(LOOKALIKES) == 14
