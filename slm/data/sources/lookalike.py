"""Corpora that look like public ones, made up: directories, formats, columns, and the traps that readers fall into.

For tests and benchmarks on machines without the corpora. ``write_lookalike("dclm", "/tmp/dclm", 200)`` writes
about 200 MB of text in a second or ten. What is written depends on the arguments alone.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from slm.config.errors import ConfigError, suggest
from slm.data.sources.prose import Prose
from slm.data.sources.web import FASTTEXT

ROW_GROUP = 1000
"""Rows of a row group, as datatrove and push_to_hub write them."""
FRAME_DOCUMENTS = 100
"""Documents of a zstd frame."""

Facts = Sequence[float]
Row = Callable[[int, str, Facts], dict[str, Any]]
_BROKEN_LINE = b'{"text": "a line that was cut off in the mid\n'


@dataclass(frozen=True)
class Made:
    """What was written: documents (repeats among them), bytes of their text, broken lines."""

    root: Path
    files: tuple[Path, ...]
    documents: int
    bytes: int
    broken: int


@dataclass(frozen=True)
class _Kind:
    """How a corpus looks: where its files are, what a row is."""

    path: Callable[[int], str]
    """A file's place, by its number."""
    row: Row
    text: str = "text"
    script: Callable[[int], str] = lambda _: "Latn"
    without: Callable[[int], tuple[str, ...]] = lambda _: ()
    """Columns that a file lacks, by its number."""


def write_lookalike(
    name: str,
    root: str | Path,
    megabytes: float = 1.0,
    *,
    files: int | None = None,
    seed: int = 0,
    duplicates: float = 0.0,
    broken_lines: int = 0,
) -> Made:
    """Write a look-alike of a corpus into a directory.

    Args:
        name: one of `LOOKALIKES`, named after the source that reads it.
        megabytes: size of the text, about.
        files: how many; None for four, or more so that none has over 64 MB.
        duplicates: share of documents that repeat an earlier one.
        broken_lines: lines that are no JSON, at even distances (JSON lines only).
    """
    if name not in LOOKALIKES:
        raise ConfigError(f"There is no look-alike of {name!r}. {suggest(name, LOOKALIKES)}")
    kind, root = LOOKALIKES[name], Path(root)
    files = files or max(4, math.ceil(megabytes / 64))
    prose: dict[str, Iterator[tuple[str, Facts]]] = {}
    made: list[Path] = []
    documents = size = broken = 0
    for number in range(files):
        script = kind.script(number)
        stream = prose.setdefault(script, Prose(seed, duplicates=duplicates, script=script).documents())
        path = root / kind.path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = list(_about(stream, int(megabytes * 1e6 / files)))
        rows = _rows(kind, texts, documents, set(kind.without(number)))
        here = broken_lines * (number + 1) // files - broken_lines * number // files
        if path.suffix == ".parquet":
            _write_parquet(path, rows, "zstd" if number % 2 else "snappy")
        else:
            _write_lines(path, rows, len(texts), here)
            broken += here
        documents, size = documents + len(texts), size + sum(len(text.encode()) for text, _ in texts)
        made.append(path)
    return Made(root, tuple(made), documents, size, broken)


def _about(stream: Iterator[tuple[str, Facts]], size: int) -> Iterator[tuple[str, Facts]]:
    for text, facts in stream:
        yield text, facts
        size -= len(text.encode())
        if size <= 0:
            return


def _rows(kind: _Kind, texts: list[tuple[str, Facts]], first: int, without: set[str]) -> Iterator[dict[str, Any]]:
    for index, (text, facts) in enumerate(texts, start=first):
        row = kind.row(index, text, facts)
        yield {key: value for key, value in row.items() if key not in without} if without else row


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], compression: str) -> None:
    writer: pq.ParquetWriter | None = None
    while chunk := list(islice(rows, ROW_GROUP)):
        table = pa.Table.from_pylist(chunk, schema=writer.schema if writer else None)
        writer = writer or pq.ParquetWriter(path, table.schema, compression=compression)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _write_lines(path: Path, rows: Iterator[dict[str, Any]], count: int, broken: int) -> None:
    every = count // (broken + 1) + 1
    compress: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=1).compress
    if path.suffix == ".gz":
        compress = lambda raw: gzip.compress(raw, 1, mtime=0)  # noqa: E731
    done, left = 0, broken
    with path.open("wb") as file:
        while chunk := list(islice(rows, FRAME_DOCUMENTS)):
            lines = []
            for row in chunk:
                lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                done += 1
                if left and done % every == 0:
                    lines.append(_BROKEN_LINE)
                    left -= 1
            file.write(compress(b"".join([*lines, *([_BROKEN_LINE] * left if done == count else [])])))


def _web(index: int, text: str, facts: Facts) -> dict[str, Any]:
    """The columns that FineWeb and its children share."""
    year, month, day = 2013 + int(facts[0] * 11), 1 + int(facts[1] * 12), 1 + int(facts[2] * 28)
    return {
        "text": text,
        "id": f"<urn:uuid:{index:08x}-0000-4000-8000-{int(facts[3] * 2**48):012x}>",
        "dump": f"CC-MAIN-{year}-{10 + month}",
        "url": f"https://www.site{int(facts[4] * 5000)}.org/{month}/page-{index}.html",
        "date": f"{year}-{month:02d}-{day:02d}T{int(facts[5] * 24):02d}:24:47Z",
        "file_path": f"s3://commoncrawl/crawl-data/CC-MAIN-{year}/segments/{index}.warc.gz",
        "language": "en",
        "language_score": 0.65 + 0.35 * facts[6],
    }


def _edu(index: int, text: str, facts: Facts) -> dict[str, Any]:
    score = 2.52 + 2.4 * facts[7] ** 2
    return _web(index, text, facts) | {"token_count": len(text) // 4, "score": score, "int_score": round(score)}


def _dclm(index: int, text: str, facts: Facts) -> dict[str, Any]:
    web = _web(index, text, facts)
    metadata = {
        "Content-Length": str(len(text) * 7),
        "Content-Type": "application/http; msgtype=response",
        "WARC-Date": web["date"],
        "WARC-Identified-Payload-Type": None if facts[7] < 0.3 else "text/html",
        "WARC-Record-ID": web["id"],
        "WARC-Target-URI": web["url"],
        "WARC-Type": "response",
    }
    if facts[7] > 0.97:
        metadata["WARC-Truncated"] = "length"
    return {
        "bff_contained_ngram_count_before_dedupe": int(facts[0] * 40),
        "language_id_whole_page_fasttext": {"en": web["language_score"]},
        "metadata": metadata,
        "previous_word_count": text.count(" ") + 1,
        "text": text,
        "url": web["url"],
        "warcinfo": None if facts[1] < 0.1 else "robots: classic\r\nformat: WARC File Format 1.0\r\n",
        FASTTEXT: 0.018112 + 0.98 * facts[2] ** 4,
    }


def _smollm_web(index: int, text: str, facts: Facts) -> dict[str, Any]:
    edu = _edu(index, text, facts)
    return {"text": edu.pop("text"), "id": edu.pop("id"), "metadata": edu}


def _cosmopedia(index: int, text: str, facts: Facts) -> dict[str, Any]:
    return {
        "prompt": f"Write a long and very detailed course unit about topic {index}.",
        "text": text,
        "token_length": len(text) // 4,
        "audience": ("general", "high_school_studnets", "young_children")[int(facts[0] * 3)],
        "format": ("textbook_unit", "blogpost", "story")[int(facts[1] * 3)],
        "seed_data": "fineweb-edu",
    }


def _python_edu(index: int, text: str, facts: Facts) -> dict[str, Any]:
    names = {"blob_id": f"{index:040x}", "repo_name": f"user{index % 97}/repo", "path": f"/src/file{index}.py"}
    return names | {"length_bytes": len(text), "score": 2.5 + facts[0] * 2.5, "int_score": 3 + int(facts[0] * 3)}


def _finemath(index: int, text: str, facts: Facts) -> dict[str, Any]:
    edu = _edu(index, text, facts)
    kept = ("url", "text", "token_count", "score", "int_score", "language", "language_score")
    return {key: edu[key] for key in kept} | {"char_count": len(text), "crawl": edu["dump"], "snapshot_type": "latest"}


def _dolma(index: int, text: str, facts: Facts) -> dict[str, Any]:
    web = _web(index, text, facts)
    times = {"added": "2024-04-01T00:00:00.000Z", "created": web["date"]}
    return {"id": f"{index:016x}", "text": text, "source": "dclm", "metadata": {"url": web["url"]}, **times}


def _code(index: int, text: str, facts: Facts) -> dict[str, Any]:
    body = "\n".join(f"    value_{i} = '''{part}'''" for i, part in enumerate(text.split(". ")))
    return {
        "max_stars_repo_path": f"src/module_{index}.py",
        "max_stars_repo_name": f"user{int(facts[0] * 999)}/repo",
        "max_stars_count": int(facts[1] ** 8 * 10_000),
        "id": str(index),
        "content": f"def function_{index}():\n{body}\n",
    }


def _pile(index: int, text: str, facts: Facts) -> dict[str, Any]:
    sets = ("Pile-CC", "PubMed Central", "Books3", "ArXiv", "Github", "Wikipedia (en)")
    return {"text": text, "meta": {"pile_set_name": sets[int(facts[0] * len(sets))]}}


def _fineweb2(index: int, text: str, facts: Facts) -> dict[str, Any]:
    more = {"minhash_cluster_size": 1 + int(facts[7] ** 6 * 500), "top_langs": "{}"}
    return _web(index, text, facts) | {"language_script": "Cyrl" if text[:1] > "z" else "Latn"} | more


def _txt360(index: int, text: str, facts: Facts) -> dict[str, Any]:
    web = _web(index, text, facts)
    return {"text": text, "meta": {"url": web["url"], "date": web["date"]}, "subset": "common-crawl"}


def _nemotron(index: int, text: str, facts: Facts) -> dict[str, Any]:
    web = _web(index, text, facts)
    return {"warc_record_id": web["id"][10:-1], "url": web["url"], "text": text, "language": "eng"}


def _in(*places: str) -> Callable[[int], str]:
    """Files in turn in several places; ``{n}`` counts the files of a place."""
    return lambda number: places[number % len(places)].format(n=number // len(places))


LOOKALIKES: dict[str, _Kind] = {
    "fineweb_edu": _Kind(
        _in("data/CC-MAIN-2013-20/train-{n:05d}-of-00022.parquet", "data/CC-MAIN-2024-10/train-{n:05d}-of-00020.parquet"),
        _edu,
        without=lambda number: () if number % 2 else ("date",),
    ),
    "fineweb_edu_sample": _Kind(_in("sample/10BT/{n:03d}_00000.parquet"), _edu),
    "dclm": _Kind(
        _in(*(f"global-shard_{a:02d}_of_10/local-shard_{b}_of_10/shard_{{n:08d}}_processed.jsonl.zst" for b in (0, 1) for a in (1, 2))),
        _dclm,
    ),
    "dclm_parquet": _Kind(_in("filtered/part-{n:05d}.parquet"), _dclm),
    "smollm_fineweb_edu_dedup": _Kind(_in("fineweb-edu-dedup/train-{n:05d}-of-00234.parquet"), _smollm_web),
    "smollm_cosmopedia": _Kind(_in("cosmopedia-v2/train-{n:05d}-of-00104.parquet"), _cosmopedia),
    "smollm_python_edu": _Kind(_in("python-edu/train-{n:05d}-of-00004.parquet"), _python_edu),
    "finemath": _Kind(_in("finemath-4plus/train-{n:05d}-of-00064.parquet"), _finemath),
    "dolma": _Kind(_in("data/dclm/{n:04d}/dclm-{n:04d}.json.zst", "data/pes2o/{n:04d}/pes2o-{n:04d}.json.gz"), _dolma),
    "starcoder": _Kind(
        _in("python/train-{n:05d}-of-00059.parquet", "ada/train-{n:05d}-of-00001.parquet"),
        _code,
        text="content",
        without=lambda number: ("max_stars_count",) if number % 2 else (),
    ),
    "pile": _Kind(_in("train/{n:02d}.jsonl.zst"), _pile),
    "fineweb2": _Kind(
        _in("data/rus_Cyrl/train/{n:03d}_00000.parquet", "data/deu_Latn/train/{n:03d}_00000.parquet"),
        _fineweb2,
        script=lambda number: "Latn" if number % 2 else "Cyrl",
    ),
    "txt360": _Kind(
        _in("data/common-crawl/CC-MAIN-2013-20/1-1/chunk_{n:03d}_0000.jsonl.gz", "data/common-crawl/CC-MAIN-2013-20/2-5/chunk_{n:03d}_0000.jsonl.gz"),
        _txt360,
    ),
    "nemotron_cc": _Kind(
        _in("quality=high/kind=actual/kind2=actual/part-{n:05d}.jsonl.zstd", "quality=medium/kind=synthetic/kind2=distill/part-{n:05d}.jsonl.zstd"),
        _nemotron,
    ),
}  # fmt: skip
