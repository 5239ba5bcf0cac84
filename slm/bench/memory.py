"""Memory of tokenising and of loading, for a corpus and for one of ten times its size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from slm.bench.corpus import Work
from slm.bench.jobs import run_job
from slm.bench.loading import ROWS, SEQ_LEN
from slm.bench.results import Result, Target, result
from slm.config.cores import usable_cores

GROWTH = 10
FLAT = 1.25
"""How much the peak may grow while the corpus grows tenfold, to count as flat: allocators and caches aren't exact."""


def run(work: Work) -> Iterator[Result]:
    """The most memory of a process and its children, in GiB, and by how much it grows."""
    sizes = (work.mb, GROWTH * work.mb)
    tokenised = [_tokenised(work, mb) for mb in sizes]
    yield from _results("tokenise", f"MB of text, workers={usable_cores()}", sizes, tokenised)
    for mb in sizes:
        work.token_store(mb)
        _loaded(work, mb)  # the packing is made and kept
    yield from _results("load", "MB of tokens", sizes, [_loaded(work, mb) for mb in sizes])


def _results(what: str, unit: str, sizes: tuple[float, float], found: list[dict[str, Any]]) -> Iterator[Result]:
    small, large = (report["anonymous"] / 2**30 for report in found)
    resident = " and ".join(f"{report['resident'] / 2**30:.2f}" for report in found)
    note = (
        f"{sizes[0]:g} and {sizes[1]:g} {unit}: {small:.3f} and {large:.3f} GiB of the processes' own at the peak; with pages of mapped files, "
        f"which the kernel takes back at will, {resident} GiB"
    )
    yield result(f"memory, {what}, {sizes[1]:g} MB", large, "GiB", target=Target("<", 1), note=note)
    yield result(f"memory, {what}, growth at {GROWTH}x", large / small, "x", target=Target("<=", FLAT), note=note)


def _tokenised(work: Work, mb: float) -> dict[str, Any]:
    text, tokenizer = str(work.text(mb)), str(work.tokenizer())
    with tempfile.TemporaryDirectory(prefix="out-", dir=work.root) as folder:
        return run_job(
            "tokenise", text=text, tokenizer=tokenizer, out=f"{folder}/out", backend="auto", workers=usable_cores()
        )


def _loaded(work: Work, mb: float) -> dict[str, Any]:
    return run_job("load", root=str(work.root), megabytes=mb, seq_len=SEQ_LEN, rows=ROWS)
