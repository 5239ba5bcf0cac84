"""From sources to a finished store: tokenizer, first pass, repeats, second pass, manifest.

Everything is made in ``<store>.partial`` and every step leaves its result whole or not at all, so the same
command after any interruption goes on where it stopped; the last step gives the directory its name. The
store's bytes depend on the sources, the tokenizer and the curation, never on workers or interruptions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from slm.config.cores import usable_cores
from slm.config.errors import ConfigError, RunError
from slm.config.files import locked, replace_durably, sync_directory
from slm.config.identity import differences
from slm.data.document import Unit
from slm.data.ingest import merge
from slm.data.ingest.account import manifest_of
from slm.data.ingest.config import Curation, identity_of
from slm.data.ingest.pool import Task, run_tasks
from slm.data.ingest.sample import sample, sample_size
from slm.data.ingest.unit import Job, Workshop
from slm.data.sources import SourcePart
from slm.data.store import FORMAT, SPLITS, Store, token_dtype
from slm.data.store import manifest as manifests
from slm.data.tokenizer import BackendName, Tokenizer, TokenizerPart, Trained

Engine = Callable[[Job, Path], None]
"""Does all units of a job into a work folder, such as a partial `slm.data.ingest.engine.run_units`."""
SMALL = 64_000_000
"""Bytes of input up to which one process does the work: starting others would take longer."""


class Progress(Protocol):
    """Who is told how far the making of a store is."""

    def stage(self, name: str, total_bytes: int = 0) -> None:
        """A stage begins; ``total_bytes`` of input, if known."""

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Documents were tokenised."""

    def read(self, input_bytes: int) -> None:
        """That much of the stage's input is done."""


class Silent:
    """Nobody is told."""

    def stage(self, name: str, total_bytes: int = 0) -> None: ...
    def add(self, documents: int, tokens: int, text_bytes: int) -> None: ...
    def read(self, input_bytes: int) -> None: ...


def build(
    out: Path,
    sources: tuple[SourcePart, ...],
    tokenizer: TokenizerPart,
    curation: Curation,
    *,
    workers: int | None = None,
    backend: BackendName = "auto",
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Store:
    """Open the store ``out``; make it first, or go on making it, if it isn't finished.

    Args:
        workers: processes; None takes one per core, or a single one for little text.
        backend: which library encodes (``auto``, ``hf``, ``tiktoken``, ``gigatoken``, ``sentencepiece``).
        engine: does the first pass on a cluster; None does it in processes of this machine.

    Raises:
        ConfigError: no documents, or none held out.
        RunError: input that can't be read, a full disk, other settings than those of the unfinished store.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = _Build(out, sources, tokenizer, curation, workers, backend, engine, progress or Silent())
    if not (out / "manifest.json").exists():
        with locked(out.with_name(out.name + ".lock")):
            if not (out / "manifest.json").exists():  # else another process made it while this one waited
                work.run()
    store = Store.open(out)
    work.refuse_other(store.manifest["made_of"], f"{out} is a store already, made with")
    return store


def describe(sources: tuple[SourcePart, ...], tokenizer: TokenizerPart, curation: Curation) -> dict[str, Any]:
    """Everything that decides a store's bytes, as plain data."""
    return {
        "format": FORMAT,
        "sources": [{"source": s.model_dump(mode="json"), "state": s.state()} for s in sources],
        "tokenizer": tokenizer.made_of(),
        "curation": identity_of(curation),
    }


class _Build:
    def __init__(
        self,
        out: Path,
        sources: tuple[SourcePart, ...],
        tokenizer: TokenizerPart,
        curation: Curation,
        workers: int | None,
        backend: BackendName,
        engine: Engine | None,
        progress: Progress,
    ) -> None:
        self.out, self.work = out, out.with_name(out.name + ".partial")
        self.sources, self.part, self.curation = sources, tokenizer, curation
        self.progress, self.backend, self.engine = progress, backend, engine
        self.described = json.loads(json.dumps(describe(sources, tokenizer, curation)))
        self._workers = workers

    @cached_property
    def units(self) -> list[tuple[int, Unit]]:
        """(which source, which unit of it), in order. Listing them opens files: not done for a store that is there."""
        return [(number, unit) for number, source in enumerate(self.sources) for unit in source.units()]

    @cached_property
    def input_bytes(self) -> int:
        """Of all units."""
        return sum(unit.bytes for _, unit in self.units)

    @cached_property
    def workers(self) -> int:
        """Processes: one per core by default, a single one for little text."""
        if self._workers is not None:
            return self._workers
        return 1 if self.input_bytes < SMALL else usable_cores()

    def run(self) -> None:
        if not self.units:
            raise ConfigError("The sources have no files.")
        try:
            if self._begin():
                self._finish()
                return
            tokenizer = self._tokenizer()
            self._first_pass(tokenizer)
            manifest = self._second_pass(tokenizer)
            manifests.write(self.work, manifest)
            self._finish()
        except OSError as error:
            raise RunError(
                f"{self.work}: {error.strerror or error}. What is finished is kept; run the same command again."
            ) from None

    def _begin(self) -> bool:
        """Take up the unfinished store if it was to become this one; True if only its name is missing."""
        file = self.work / "job.json"
        if (self.work / "manifest.json").exists():
            self.refuse_other(manifests.read(self.work)["made_of"], f"{self.work} was made with")
            return True
        if file.exists():
            self.refuse_other(json.loads(file.read_text()), f"{self.work} was begun with")
        else:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            replace_durably(file, json.dumps(self.described, sort_keys=True).encode())
        (self.work / "units").mkdir(exist_ok=True)
        (self.work / "shards").mkdir(exist_ok=True)
        return False

    def refuse_other(self, made_of: dict[str, Any], what: str) -> None:
        """Raise `RunError` if a store, finished or not, is not the one that this build would make."""
        if changed := differences(made_of, self.described):
            raise RunError(f"{what} other settings ({'; '.join(changed[:3])}). Remove it, or choose another place.")

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer of an earlier attempt, or a new one."""
        made = sorted(self.work.glob("tokenizer.*"))
        if made:
            return Tokenizer.from_bytes(made[0].read_bytes())
        learns = isinstance(self.part, Trained)
        self.progress.stage("training the tokenizer" if learns else "loading the tokenizer")
        tokenizer = self.part.load(lambda: sample([(s, self.curation) for s in self.sources], sample_size(self.part)))
        replace_durably(self.work / tokenizer.file_name, tokenizer.to_bytes())
        return tokenizer

    def _first_pass(self, tokenizer: Tokenizer) -> None:
        index = None
        if self.curation.decontaminate is not None:
            index = self.work / "evaluation-sets.index"
            if not index.exists():
                self.curation.decontaminate.build().save(index)
        threads = usable_cores() if self.workers == 1 else 1  # several processes are the parallelism
        job = Job(self.sources, tuple(self.units), self.curation, tokenizer, self.backend, threads, index)
        self.progress.stage("tokenising", self.input_bytes)
        if self.engine is not None:
            self.engine(replace(job, threads=1), self.work)
            return
        self._parallel(
            partial(Workshop, job),
            [Task(_process, (i, merge.unit_folder(self.work, i))) for i in range(len(self.units))],
            [unit for _, unit in self.units],
        )

    def _second_pass(self, tokenizer: Tokenizer) -> dict[str, Any]:
        count = len(self.units)
        repeats = 0
        if self.curation.dedup != "off":
            self.progress.stage("looking for repeats")
            repeats = merge.drop_duplicates(self.work, count)
        counts, tokens = merge.totals(self.work, count)
        dtype = token_dtype(tokenizer.vocab_size)
        ranges = merge.shard_ranges(tokens, dtype.itemsize, self.curation.shuffle)
        self.progress.stage("writing shards")
        self._parallel(_nothing, [Task(_gather, (self.work, count, r, dtype)) for r in ranges], None)
        splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
        for r in ranges:
            made = json.loads((self.work / "shards" / f"{r.number:05d}.json").read_text())
            if made["entry"]:
                splits[made["split"]].append(made["entry"])
        return manifest_of(
            tokenizer,
            dtype,
            splits,
            made_of=self.described,
            read=counts["read"],
            dropped={rule: n for rule, n in counts.items() if rule not in ("read", "kept")} | {"duplicate": repeats},
            heldout=self.curation.heldout,
        )

    def _parallel(self, make: Callable[[], Any], tasks: list[Task], units: list[Unit] | None) -> None:
        def finished(number: int) -> None:
            if units is not None:
                self.progress.read(units[number].bytes)

        run_tasks(tasks, workers=self.workers, make=make, tick=self.progress.add, finished=finished)

    def _finish(self) -> None:
        """Leave only the store, and give it its name."""
        for path in (self.work / "shards").iterdir():
            if path.suffix not in (".tok", ".idx", ".crc", ".meta"):
                path.unlink()
        for path in self.work.iterdir():  # also what a killed attempt left behind, whatever its name
            if path.name not in ("manifest.json", "shards") and not path.name.startswith("tokenizer."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        sync_directory(self.work / "shards")
        sync_directory(self.work)
        shutil.rmtree(self.out, ignore_errors=True)
        os.replace(self.work, self.out)
        sync_directory(self.out.parent)


def _process(workshop: Workshop, index: int, folder: Path, tick: Any) -> None:
    workshop.process(index, folder, tick)


def _gather(_: Any, work: Path, units: int, target: merge.Range, dtype: Any, tick: Any) -> None:
    merge.gather(work, units, target, dtype)


def _nothing() -> None:
    """Workers of the second pass keep nothing."""
