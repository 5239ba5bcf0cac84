"""Layouts of corpora that are chosen, written or gathered: textbooks, mathematics, code, mixtures.

Columns that a file lacks are null. Sizes and licences are those of the dataset cards.
"""

from __future__ import annotations

from typing import Literal

from slm.data.sources.base import source
from slm.data.sources.files import FileSource, Layout, same


@source.register("smollm_corpus", paper="Ben Allal et al. 2025, arXiv 2502.02737")
class SmollmCorpus(FileSource):
    """SmolLM-Corpus, `HuggingFaceTB/smollm-corpus`: synthetic textbooks, educational web pages, Python files. ODC-By.

    Files: ``cosmopedia-v2/train-*.parquet`` and so on. ``python-edu`` has names of files and no text.
    """

    variants = tuple({"subset": name} for name in ("cosmopedia-v2", "fineweb-edu-dedup", "python-edu"))

    subset: Literal["cosmopedia-v2", "fineweb-edu-dedup", "python-edu"]
    """Which of the three: they don't share columns."""

    def layout(self) -> Layout:
        path, inside = (f"{self.subset}/train-*",), (("train-*",),)
        if self.subset == "cosmopedia-v2":
            columns, signs = same("audience", "format", "token_length", "seed_data"), frozenset(["prompt", "seed_data"])
            return Layout(path, inside=inside, columns=columns, signs=signs)
        if self.subset == "python-edu":
            return Layout(
                path, inside=inside, id="blob_id", columns=same("repo_name", "path", "length_bytes", "score", "int_score"),
                no_text="python-edu names files (blob_id) of Software Heritage; their contents have to be fetched from "
                "there first.",
                signs=frozenset(["blob_id", "length_bytes"]),
            )  # fmt: skip
        names = ("url", "dump", "date", "language", "language_score", "token_count", "score", "int_score")
        columns = {name: f"metadata.{name}" for name in names}
        return Layout(path, inside=inside, columns=columns, signs=frozenset(["text", "metadata.int_score"]))


@source.register("finemath", paper="Ben Allal et al. 2025, arXiv 2502.02737")
class Finemath(FileSource):
    """FineMath, `HuggingFaceTB/finemath`: web pages that teach mathematics, 34B tokens. ODC-By.

    Files: ``finemath-4plus/train-*.parquet`` and so on; each 4plus is contained in its 3plus.
    """

    variants = tuple({"config": f"{origin}-{score}plus"} for origin in ("finemath", "infiwebmath") for score in (3, 4))

    config: Literal["finemath-3plus", "finemath-4plus", "infiwebmath-3plus", "infiwebmath-4plus"] = "finemath-4plus"
    """Origin and least score."""

    def layout(self) -> Layout:
        columns = same("url", "token_count", "char_count", "score", "int_score", "language", "language_score")
        signs = frozenset(["text", "url", "int_score", "char_count"])
        return Layout((f"{self.config}/**/*",), columns=columns, signs=signs)


@source.register("dolma", paper="Soldaini et al. 2024, arXiv 2402.00159")
class Dolma(FileSource):
    """Dolma, OLMo-mix and Dolmino (`allenai/dolma`, `allenai/olmo-mix-1124`, ...): web, books, papers, code. ODC-By.

    Files: ``data/dclm/0000/dclm-0000.json.zst``, or ``c4-0000.json.gz`` in one directory; a JSON document a line.
    """

    sources: tuple[str, ...] = ()
    """Directories below ``data``, such as ``dclm`` or ``pes2o``; empty: all files that are there."""

    def layout(self) -> Layout:
        suffixes = tuple(f".{kind}.{c}" for kind in ("json", "jsonl") for c in ("gz", "zst", "zstd"))
        globs = tuple(f"data/{name}/**/*" for name in self.sources) or ("**/*",)
        columns = same("source", "created", "added") | {"url": "metadata.url"}
        return Layout(globs, suffixes, columns=columns, signs=frozenset(["id", "text", "added", "source"]))


@source.register("starcoder", paper="Li et al. 2023, arXiv 2305.06161")
class Starcoder(FileSource):
    """StarCoderData, `bigcode/starcoderdata`: 783 GB of code under permissive licences, each file under its own.

    Files: ``<language>/train-*.parquet``; some languages lack some columns.
    """

    languages: tuple[str, ...] = ()
    """Directories, such as ``python`` or ``jupyter-scripts-dedup-filtered``; empty: all that are there."""

    def layout(self) -> Layout:
        globs = tuple(f"{name}/*" for name in self.languages or ("*",))
        columns = same("max_stars_repo_path", "max_stars_repo_name", "max_stars_count")
        inside, signs = () if self.languages else (("*",),), frozenset(["content", "max_stars_repo_name"])
        return Layout(globs, inside=inside, text="content", columns=columns, signs=signs)


@source.register("pile", paper="Gao et al. 2020, arXiv 2101.00027")
class Pile(FileSource):
    """The Pile: 825 GiB of 22 sources, named in the column ``pile_set_name``. Each source under its own licence.

    Files: ``train/00.jsonl.zst`` to ``29.jsonl.zst``, ``val.jsonl.zst``, ``test.jsonl.zst``. No ids.
    """

    split: Literal["train", "val", "test"] = "train"
    """The Pile's own split."""

    def layout(self) -> Layout:
        globs = ("train/[0-9][0-9].jsonl*",) if self.split == "train" else (f"{self.split}.jsonl*",)
        inside = (("[0-9][0-9].jsonl*",),) if self.split == "train" else ()
        columns, signs = {"pile_set_name": "meta.pile_set_name"}, frozenset(["text", "meta.pile_set_name"])
        return Layout(globs, (".jsonl.zst", ".jsonl.zstd"), inside, columns=columns, signs=signs)
