from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.errors import ConfigError, RunError
from slm.data.curate.dedup import find_duplicates, hash_texts, write_hashes

SMALL = 1 << 16
"""Bytes: 682 rows a piece, so that a few thousand rows need many buckets."""


def write(folder: Path, units: list[np.ndarray]) -> list[Path]:
    paths = [folder / f"{i}.npy" for i in range(len(units))]
    for path, hashes in zip(paths, units, strict=True):
        write_hashes(path, hashes)
    return paths


def naive(units: list[np.ndarray]) -> list[list[int]]:
    seen: set[bytes] = set()
    found = []
    for unit in units:
        rows = []
        for i, row in enumerate(unit):
            if row.tobytes() in seen:
                rows.append(i)
            seen.add(row.tobytes())
        found.append(rows)
    return found


def found(paths: list[Path], memory: int) -> list[list[int]]:
    result = list(find_duplicates(paths, memory))
    assert [unit for unit, _ in result] == list(range(len(paths)))
    return [rows.tolist() for _, rows in result]


@given(units=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_first_occurrence_stays(units: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    hashes = [hash_texts(unit) for unit in units]
    paths = write(tmp_path_factory.mktemp("hashes"), hashes)
    assert found(paths, SMALL) == naive(hashes)


@pytest.mark.parametrize("distinct", [3, 500, 100_000])
def test_any_memory_gives_the_same(tmp_path: Path, distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    pool = rng.integers(0, 2**64, (distinct, 2), dtype=np.uint64)
    pool[1, 0] = pool[0, 0]  # half of a hash is not the hash
    pool[2, 1] = pool[0, 1]
    units = [pool[rng.integers(distinct, size=n)] for n in (0, 5000, 1, 3000, 0, 4000)]
    paths = write(tmp_path, units)
    expected = naive(units)
    assert sum(map(len, expected)) > 0
    for memory in (SMALL, 1 << 18, 1 << 30):
        assert found(paths, memory) == expected


def test_hashes_that_all_fall_into_one_bucket_are_still_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    unit = rng.integers(0, 3000, (6000, 2), dtype=np.uint64)
    unit[:, 0] //= 100
    paths = write(tmp_path, [unit, unit[:10]])
    assert found(paths, SMALL) == naive([unit, unit[:10]])


def test_memory_is_bounded(tmp_path: Path) -> None:
    """5 million documents, 80 MB of hashes, a fifth of them one and the same text."""
    rng = np.random.default_rng(1)
    paths, expected, limit = [tmp_path / f"{i}" for i in range(10)], 0, 16 << 20
    for i, path in enumerate(paths):
        hashes = rng.integers(0, 2**64, (500_000, 2), dtype=np.uint64)
        hashes[::5] = 7
        expected += 100_000 - (i == 0)
        write_hashes(path, hashes)
        del hashes
    tracemalloc.start()
    dropped = sum(len(rows) for _, rows in find_duplicates(paths, limit, scratch=tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dropped == expected
    assert peak < 1.25 * limit
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # nothing is left behind


def test_modes() -> None:
    texts = ["The  Cat", "the cat", "the\ncat ", "ﬁne", "fine", "Straße", "STRASSE"]
    exact, normalized = hash_texts(texts), hash_texts(texts, "normalized")
    assert exact.shape == (7, 2)
    assert len(np.unique(exact, axis=0)) == 7
    _, groups = np.unique(normalized, axis=0, return_inverse=True)
    assert [len({int(g) for g in groups[a:b]}) for a, b in ((0, 3), (3, 5), (5, 7))] == [1, 1, 1]
    assert len(set(groups.tolist())) == 3
    assert hash_texts([]).shape == (0, 2)
    assert hash_texts(["\ud800"]).shape == (1, 2)  # no valid text, but no reason to fall over here
    with pytest.raises(ConfigError, match="exact and normalized"):
        hash_texts(["a"], "off")


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "unit"
    write_hashes(path, hash_texts(["a", "b", "c"]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(RunError, match="unit: no whole file of hashes"):
        list(find_duplicates([path]))
    path.write_bytes(b"")
    with pytest.raises(RunError, match="no whole file"):
        list(find_duplicates([path]))
    with pytest.raises(RunError, match=r"absent: no whole file"):
        list(find_duplicates([tmp_path / "absent"]))
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 2), np.float32))
    with pytest.raises(RunError, match="not hashes"):
        list(find_duplicates([path]))
    with pytest.raises(ConfigError, match="64 KiB"):
        list(find_duplicates([], 100))
    with pytest.raises(ValueError, match="shape"):
        write_hashes(path, np.zeros(4, np.uint64))
