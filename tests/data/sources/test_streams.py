from __future__ import annotations

import gzip
import io
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slm.config.errors import RunError
from slm.data.sources.streams import DamagedError, TooLong, chunks, cut_at_lines, split_lines

TEXT = b"".join(b"line %d of a file that is not very short\n" % i for i in range(20_000))


def everything(path: Path, compression: str | None = None) -> bytes:
    return b"".join(chunks(str(path), path.stat().st_size, compression=compression))


@pytest.mark.parametrize(
    ("compression", "raw"),
    [
        (None, TEXT),
        ("gzip", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:9]) + gzip.compress(b"") + gzip.compress(TEXT[9:])),
        ("zstd", zstandard.compress(TEXT)),
        ("zstd", zstandard.compress(TEXT[:9]) + zstandard.compress(b"") + zstandard.compress(TEXT[9:])),
        (
            "zstd",
            b"\x50\x2a\x4d\x18\x05\0\0\0hello" + zstandard.compress(TEXT),
        ),  # a skippable frame, as pzstd writes them
    ],
)
def test_all_members_and_frames_are_read(tmp_path: Path, compression: str | None, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    assert everything(tmp_path / "x", compression) == TEXT


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [0, 1, 5, -1, -5, 0.5])
def test_a_file_that_ends_too_early_is_never_taken_for_whole(tmp_path: Path, compression: str, cut: float) -> None:
    one = gzip.compress(TEXT) if compression == "gzip" else zstandard.compress(TEXT)
    end = int(len(one) * cut) if cut == 0.5 else int(cut)
    for raw in (one[:end], one + one[:end]) if end else (b"",):
        (tmp_path / "x").write_bytes(raw)
        with pytest.raises(DamagedError):
            everything(tmp_path / "x", compression)


def test_what_can_be_read_before_the_damage_is_read(tmp_path: Path) -> None:
    raw = zstandard.compress(TEXT)
    (tmp_path / "x").write_bytes(raw[: len(raw) // 2])
    got: list[bytes] = []
    with pytest.raises(DamagedError, match="Truncated"):
        got.extend(chunks(str(tmp_path / "x"), 1, compression="zstd"))
    assert TEXT.startswith(b"".join(got))
    assert len(b"".join(got)) > len(TEXT) // 4


def test_a_wrong_checksum_and_rubbish_at_the_end_are_damage(tmp_path: Path) -> None:
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    for compression, raw in [
        ("zstd", whole[:-1] + bytes([whole[-1] ^ 1])),
        ("zstd", whole + b"rubbish"),
        ("gzip", gzip.compress(TEXT)[:-8] + bytes(8)),
        ("gzip", gzip.compress(TEXT) + b"rubbish, quite some of it"),
        ("gzip", b"no gzip file at all"),
    ]:
        (tmp_path / "x").write_bytes(raw)
        with pytest.raises(DamagedError):
            everything(tmp_path / "x", compression)


def test_a_file_that_shrank_is_damaged_and_one_that_is_gone_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TEXT[:100])
    with pytest.raises(DamagedError, match="at byte 100, 50 bytes before"):
        list(chunks(str(tmp_path / "x"), 150))
    with pytest.raises(RunError, match="can't be opened"):
        list(chunks(str(tmp_path / "nothing"), 150))


@given(st.binary(max_size=200).map(lambda b: b.replace(b"x", b"\n")), st.integers(1, 30), st.integers(1, 50))
def test_lines_are_those_of_the_standard_library_and_long_ones_are_measured(raw: bytes, step: int, limit: int) -> None:
    pieces = [raw[i : i + step] for i in range(0, len(raw), step)]
    expected = [line.removesuffix(b"\n") for line in io.BytesIO(raw)]
    got = list(split_lines(pieces, limit))
    assert got == [line if len(line) <= limit else TooLong(len(line)) for line in expected]


@given(raw=st.binary(max_size=300).map(lambda b: b.replace(b"x", b"\n")), target=st.integers(1, 100))
def test_cut_files_keep_lines_whole_and_numbered(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, target: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x"
    path.write_bytes(raw)
    pieces = cut_at_lines(str(path), len(raw), target)
    assert [a for a, _, _ in pieces] == [0, *(b for _, b, _ in pieces)][: len(pieces)]
    assert (pieces[-1][1] if pieces else 0) == len(raw)
    for start, end, first in pieces:
        assert start == 0 or raw[start - 1 : start] == b"\n"
        assert first == 1 + raw[:start].count(b"\n")
        assert end == len(raw) or (end - start >= target and raw[end - 1 : end] == b"\n")
        assert b"\n" not in raw[start:end][target - 1 : -1]  # no longer than needed


def test_a_line_of_hundreds_of_megabytes_is_not_held(tmp_path: Path) -> None:
    line = b'{"text": "' + b"a" * 300_000_000 + b'"}\n'
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'{"text": "after"}\n')
    (tmp_path / "y.jsonl.zst").write_bytes(zstandard.compress((tmp_path / "x.jsonl").read_bytes(), 1))
    code = (
        "import sys\n"
        "from slm.cost.resident import peak_resident_bytes\n"
        "from slm.data.sources import Local\n"
        "source = Local(paths=sys.argv[1:], on_error='skip', max_document_bytes=10_000_000)\n"
        "before = peak_resident_bytes()\n"
        "records = [r for u in source.units() for r in source.read(u)]\n"
        "print(len(records), records[1].rule, records[1].why)\n"
        "print((peak_resident_bytes() - before) >> 20)\n"
    )
    command = [sys.executable, "-c", code, "x.jsonl", "y.jsonl.zst"]
    found, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert found == "6 too_long 300000012 bytes, more than max_document_bytes=10000000"
    assert int(grown) < 100
