"""The token stores that a run needs: opened, or made first.

A store's directory is named after what goes into it, so two experiments on the same text share one, and a
changed source gets another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.config.errors import ConfigError, NoSuchText
from slm.config.files import locked, replace_durably
from slm.config.identity import fingerprint
from slm.data.config import Data, Member
from slm.data.corpus import Corpus
from slm.data.ingest.build import Progress, build, describe
from slm.data.ingest.config import identity_of
from slm.data.ingest.sample import sample, sample_size
from slm.data.sources import SourcePart
from slm.data.store import Store
from slm.data.tokenizer import BackendName, FromFile, TokenizerPart, Trained


def store_paths(data: Data, tokenizer: TokenizerPart, data_dir: Path | str) -> dict[str, Path | str]:
    """Where the store of each source belongs, or is if it was given ready-made (a path or a URL)."""
    return {name: _store_path(data, m, tokenizer, data_dir) for name, m in data.members.items()}


def missing(data: Data, paths: Mapping[str, Path | str]) -> list[str]:
    """Names of the sources whose stores are yet to be made. ``paths``: their `store_paths`, which lists every source's files."""
    return [name for name, m in data.members.items() if m.source and not (Path(paths[name]) / "manifest.json").exists()]


def without_text(data: Data) -> list[str]:
    """Names of the sources whose text isn't there (any more)."""

    def there(source: SourcePart) -> bool:
        try:
            source.state()
        except NoSuchText:
            return False
        return True

    return [name for name, m in data.members.items() if m.source is not None and not there(m.source)]


def prepare(
    data: Data,
    tokenizer: TokenizerPart,
    data_dir: Path | str,
    *,
    workers: int | None = None,
    backend: BackendName = "auto",
    progress: Progress | None = None,
) -> Corpus:
    """Open the stores of a run; make those that are missing.

    Safe under concurrency: one process builds, the others wait for it. Interrupted at any moment, it leaves
    nothing that looks finished, and goes on where it stopped.
    """
    paths = store_paths(data, tokenizer, data_dir)
    wanted = missing(data, paths)
    given = {n: str(paths[n]) for n, member in data.members.items() if member.source is None}
    ready = {
        name: ready_made(path, tokenizer, data_dir) for name, path in given.items()
    }  # or hours of work are in vain
    part = tokenizer
    if isinstance(tokenizer, Trained) and len(data.members) > 1 and wanted:
        part = FromFile(path=str(_learned(data, tokenizer, data_dir)))
    stores = {}
    for name, path in paths.items():
        member = data.members[name]
        if member.source is None:
            stores[name] = ready[name]
        elif name not in wanted:  # its directory's name says that it is made of just this
            stores[name] = Store.open(path)
        else:
            stores[name] = build(
                Path(path),
                (member.source,),
                part,
                data.curation(member),
                workers=workers,
                backend=backend,
                progress=progress,
            )
    for name in data.members.keys() - given.keys():
        _remember(data, data.members[name], tokenizer, Path(data_dir), Path(paths[name]).name)
    return Corpus(stores, Path(data_dir) / "plans")


def open_corpus(data: Data, tokenizer: TokenizerPart, data_dir: Path | str) -> Corpus:
    """The stores of a run that was made before. Raises `RunError` if one is missing."""
    paths = store_paths(data, tokenizer, data_dir)
    stores = {
        name: ready_made(str(path), tokenizer, data_dir) if data.members[name].source is None else Store.open(path)
        for name, path in paths.items()
    }
    return Corpus(stores, Path(data_dir) / "plans")


def _store_path(data: Data, member: Member, tokenizer: TokenizerPart, data_dir: Path | str) -> Path | str:
    if member.source is None:
        assert member.store is not None
        return member.store if "://" in member.store else Path(member.store).expanduser()
    try:
        made_of = describe((member.source,), tokenizer, data.curation(member))
        if isinstance(tokenizer, Trained) and len(data.members) > 1:
            made_of["learned_from"] = _learned_from(data)
    except NoSuchText:
        before = from_before(data, member, tokenizer, Path(data_dir))
        if before is None or not _is_of(before, member.source):
            raise
        return before
    return (
        Path(data_dir) / f"{member.source.part_name}-{tokenizer.part_name}{tokenizer.vocab_size}-{fingerprint(made_of)}"
    )


def from_before(data: Data, member: Member, tokenizer: TokenizerPart, data_dir: Path) -> Path | None:
    """The store that was last made, or opened, for these settings: what is left once the text itself was removed. None: there is none."""
    try:
        found = data_dir / _record(data, member, tokenizer, data_dir).read_text().strip()
    except (OSError, ValueError):  # none, or a damaged one
        return None
    return found if (found / "manifest.json").is_file() else None


def _is_of(store: Path, source: SourcePart) -> bool:
    """Whether a store was made of a source's text as it is now, or of text that is gone: another source's may be what is missing."""
    try:
        now = json.loads(json.dumps(source.state()))
    except NoSuchText:
        return True
    return bool(Store.open(store).manifest["made_of"]["sources"][0]["state"] == now)


def _remember(data: Data, member: Member, tokenizer: TokenizerPart, data_dir: Path, name: str) -> None:
    """Note which store belongs to these settings, whatever their text was."""
    record = _record(data, member, tokenizer, data_dir)
    try:
        if not record.is_file() or record.read_text() != name:
            record.parent.mkdir(exist_ok=True)
            replace_durably(record, name.encode())
    except (OSError, ValueError):
        return  # stores on a disk that can't be written to: they are found as long as their text is there


def _record(data: Data, member: Member, tokenizer: TokenizerPart, data_dir: Path) -> Path:
    def asked(m: Member) -> dict[str, Any]:
        return m.model_dump(mode="json", exclude={"max_epochs"})

    shared = [asked(m) for m in data.members.values()] if isinstance(tokenizer, Trained) else []
    settings = [asked(member), tokenizer.made_of(), identity_of(data.curation(member)), shared]
    return data_dir / "asked" / fingerprint(settings)


def ready_made(path: str, tokenizer: TokenizerPart, data_dir: Path | str) -> Store:
    """A store that a run is given. Raises `ConfigError` if the run has another tokenizer."""
    store = Store.open(path, cache_dir=_cache(data_dir))
    if isinstance(tokenizer, Trained):
        raise ConfigError(
            f"The store {path} has a tokenizer already, but tokenizer={tokenizer.part_name} would learn a new one. Set "
            f"tokenizer=file tokenizer.path={store.path / store.manifest['tokenizer']['file']}."
        )
    if tokenizer.load(lambda: ()).sha256 != store.manifest["tokenizer"]["sha256"]:
        raise ConfigError(
            f"The store {path} was made with another tokenizer than this run's: its ids mean other text. Set "
            f"tokenizer=file tokenizer.path={store.path / store.manifest['tokenizer']['file']}."
        )
    return store


def _cache(data_dir: Path | str) -> Path:
    return Path(data_dir) / "remote"


def _learned_from(data: Data) -> list[dict]:  # type: ignore[type-arg]
    """What a tokenizer that several sources share is trained on."""
    return [
        {
            "source": m.source.model_dump(mode="json"),
            "state": m.source.state(),
            "curation": identity_of(data.curation(m)),
        }
        for m in data.members.values()
        if m.source is not None
    ]


def _learned(data: Data, part: TokenizerPart, data_dir: Path | str) -> Path:
    """The file of a tokenizer trained on all sources of a mixture; trained first if it is missing."""
    name = fingerprint([part.model_dump(mode="json"), _learned_from(data)])
    folder = Path(data_dir) / "tokenizers" / name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(name + ".lock")):
        if not (made := sorted(folder.glob("tokenizer.*"))):
            members = [m for m in data.members.values() if m.source is not None]
            pairs = [(m.source, data.curation(m)) for m in members if m.source is not None]
            trained = part.load(lambda: sample(pairs, sample_size(part)))
            made = [folder / trained.file_name]
            replace_durably(made[0], trained.to_bytes())
    return made[0]
