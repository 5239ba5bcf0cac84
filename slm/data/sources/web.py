"""Layouts of corpora made from Common Crawl: where their files lie, what their columns are called.

Columns that a file lacks are null. Sizes and licences are those of the dataset cards.
"""

from __future__ import annotations

from slm.data.sources.base import source
from slm.data.sources.files import FileSource, Layout, same

_FINEWEB = same("url", "dump", "date", "language", "language_score")
FASTTEXT = "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob"
"""The column of DCLM by which it was filtered: P(looks like OpenHermes or r/ELI5)."""


@source.register("fineweb_edu", paper="Penedo et al. 2024, arXiv 2406.17557")
class FinewebEdu(FileSource):
    """FineWeb-Edu, `HuggingFaceFW/fineweb-edu`: 1.3T tokens of web pages with an educational score. ODC-By 1.0.

    Files: ``data/CC-MAIN-*/*.parquet`` and ``sample/10BT/*.parquet``. Older dumps have no ``date``.
    """

    variants = ({}, *({"config": f"sample-{size}"} for size in ("10BT", "100BT", "350BT")))

    config: str = "default"
    """``default`` for all dumps; ``sample-10BT``, ``sample-100BT``, ``sample-350BT``; or one dump, ``CC-MAIN-2024-10``."""

    def published_tokens(self) -> float | None:
        sizes = {"default": 1.3e12, "sample-10BT": 10e9, "sample-100BT": 100e9, "sample-350BT": 350e9}
        return sizes.get(self.config)

    def layout(self) -> Layout:
        inside: tuple[tuple[str, ...], ...] = ()
        if self.config.startswith("sample-"):
            globs = (f"sample/{self.config.removeprefix('sample-')}/*",)
        elif self.config != "default":
            globs, inside = (f"data/{self.config}/*",), ((f"{self.config}/*",),)  # older revisions have no data/
        else:
            globs, inside = ("data/*/*",), (("*",),)
        columns = _FINEWEB | same("token_count", "score", "int_score")
        return Layout(globs, inside=inside, columns=columns, signs=frozenset(["text", "id", "dump", "int_score"]))


@source.register("fineweb2", paper="Penedo et al. 2025, arXiv 2506.20920")
class Fineweb2(FileSource):
    """FineWeb2, `HuggingFaceFW/fineweb-2`: web pages in more than a thousand languages. ODC-By 1.0.

    Files: ``data/<language>_<Script>/train/*.parquet``.
    """

    languages: tuple[str, ...] = ()
    """Language and script, such as ``rus_Cyrl``; empty: all that are there."""
    split: str = "train"
    """``train`` or ``test``."""

    def layout(self) -> Layout:
        languages = self.languages or ("*_[A-Z][a-z][a-z][a-z]",)
        columns = _FINEWEB | same("language_script", "minhash_cluster_size", "top_langs")
        inside = () if self.languages else ((f"{self.split}/*",), ("*",))
        globs, signs = tuple(f"data/{name}/{self.split}/*" for name in languages), frozenset(["id", "language_script"])
        return Layout(globs, inside=inside, columns=columns, signs=signs)


@source.register("dclm", paper="Li et al. 2024, arXiv 2406.11794")
class Dclm(FileSource):
    """DCLM-baseline, `mlfoundations/dclm-baseline-1.0`: 4T tokens of filtered web pages, many of them twice. CC-BY-4.0.

    Files: ``global-shard_01_of_10/local-shard_0_of_10/*.jsonl.zst`` (older copies: ``.zstd``), several frames
    each, WARC fields null or absent as it comes. Ten by ten shards, each of them a sample of the whole.
    """

    global_shards: tuple[int, ...] = ()
    """Which of the global shards 1 to 10; empty: all that are there."""
    local_shards: tuple[int, ...] = ()
    """Which of the local shards 0 to 9 of each; empty: all that are there."""

    def published_tokens(self) -> float | None:
        return 4e12 * (len(self.global_shards) or 10) / 10 * (len(self.local_shards) or 10) / 10

    def layout(self) -> Layout:
        outer = [f"global-shard_{n:02d}_of_10" for n in self.global_shards] or ["global-shard_*_of_10"]
        inner = [f"local-shard_{n}_of_10" for n in self.local_shards] or ["local-shard_*_of_10"]
        within = (tuple(f"{name}/*" for name in inner), *(() if self.local_shards else (("*",),)))
        return Layout(
            tuple(f"{a}/{b}/*" for a in outer for b in inner),
            (".jsonl.zst", ".jsonl.zstd"),
            () if self.global_shards else within,
            id="metadata.WARC-Record-ID",
            columns=same("url", FASTTEXT)
            | {
                "language_score": "language_id_whole_page_fasttext.en",
                "date": "metadata.WARC-Date",
                "previous_word_count": "previous_word_count",
            },
            signs=frozenset(["text", FASTTEXT]),
        )


@source.register("dclm_parquet", paper="Li et al. 2024, arXiv 2406.11794")
class DclmParquet(FileSource):
    """DCLM-baseline as parquet, `mlfoundations/dclm-baseline-1.0-parquet`: the same documents. CC-BY-4.0."""

    def layout(self) -> Layout:
        columns = same("url", FASTTEXT, "language", "language_score", "fasttext_score")
        return Layout(("**/*",), columns=columns, signs=frozenset(["text", FASTTEXT]))


@source.register("txt360", paper="Tang et al. 2024, huggingface.co/spaces/LLM360/TxT360")
class Txt360(FileSource):
    """TxT360, `LLM360/TxT360`: 99 Common Crawl dumps and 14 curated sources, deduplicated across all. ODC-By.

    Files: ``data/common-crawl/CC-MAIN-*/<how often it was found>/*.jsonl.gz``, ``data/<other subset>/...``.
    """

    subsets: tuple[str, ...] = ()
    """Directories below ``data``, such as ``common-crawl`` or ``arxiv``; empty: all that are there."""

    def layout(self) -> Layout:
        globs = tuple(f"data/{name}/**/*" for name in self.subsets or ("*",))
        inside = () if self.subsets else (("**/*",),)
        columns = {"subset": "subset", "url": "meta.url"}
        return Layout(globs, (".jsonl.gz",), inside, columns=columns, signs=frozenset(["text", "meta", "subset"]))


@source.register("nemotron_cc", paper="Su et al. 2024, arXiv 2412.02595")
class NemotronCC(FileSource):
    """Nemotron-CC: 6.3T tokens, 1.9T of them written by language models. Common Crawl's terms of use.

    Files: ``quality=high/kind=actual/kind2=actual/*.jsonl.zstd``; the three names are columns.
    """

    qualities: tuple[str, ...] = ()
    """Such as ``high`` or ``medium-high``; empty: all that are there."""
    kinds: tuple[str, ...] = ()
    """``actual`` (crawled) or ``synthetic``; empty: all that are there."""

    def layout(self) -> Layout:
        pairs = [(q, k) for q in self.qualities or ("*",) for k in self.kinds or ("*",)]
        globs = tuple(f"**/quality={q}/kind={k}/**/*" for q, k in pairs)
        columns = same("url", "quality", "kind", "kind2", "language")
        suffixes, signs = (".jsonl.zstd", ".jsonl.zst"), frozenset(["text", "url"])
        return Layout(globs, suffixes, id="warc_record_id", columns=columns, signs=signs)
