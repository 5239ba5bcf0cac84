"""What is typed on a command line as a tokenizer, evaluation sets, an engine, and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from slm.config.cores import usable_cores
from slm.config.errors import ConfigError, suggest
from slm.data.curate.decontaminate import Decontaminate, EvalSet
from slm.data.curate.quality import Quality
from slm.data.ingest.build import Engine
from slm.data.ingest.engine import EngineName, run_units
from slm.data.tokenizer import FromFile, TokenizerPart, Trained, tokenizer


def tokenizer_of(text: str) -> TokenizerPart:
    """A tokenizer: a file, ``bytes``, or one that learns, with its size: ``bpe:32768``.

    Raises:
        ConfigError: neither, with the nearest that there is.
    """
    if Path(text).expanduser().is_file():
        return FromFile(path=text)
    name, _, size = text.partition(":")
    if name not in tokenizer.parts or name == "file":
        names = sorted(set(tokenizer.parts) - {"file"})
        raise ConfigError(f"--tokenizer {text}: no such file, and no tokenizer of that name. {suggest(name, names)}")
    learns = issubclass(tokenizer.get(name), Trained)
    if learns != size.isdigit():
        wanted = f"needs its size, as in {name}:32768" if learns else "has no size"
        raise ConfigError(f"--tokenizer {text}: {name} {wanted}.")
    return tokenizer.parse({"name": name, "vocab": int(size)} if learns else name)


def evaluation_sets(files: Sequence[str], words: int) -> Decontaminate | None:
    """Evaluation sets from ``name=path`` or paths, whose files' names are then the sets'."""
    sets: dict[str, EvalSet] = {}
    for text in files:
        name, separator, path = text.partition("=")
        if not separator or "/" in name:
            name, path = Path(text).name.split(".")[0], text
        before = sets[name].paths if name in sets else ()
        sets[name] = EvalSet(paths=(*before, path))
    return Decontaminate(sets=sets, n=words, shortest=min(8, words)) if sets else None


def quality_of(text: str | None) -> Quality | None:
    """A quality model from ``model.bin:label``."""
    if text is None:
        return None
    model, separator, label = text.rpartition(":")
    if not separator:
        raise ConfigError(f"--quality {text}: name the label after a colon, as in {text}:hq.")
    return Quality(model=model, label=label)


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs, the values as in YAML."""
    import yaml

    pairs = [text.partition("=") for text in texts]
    for (key, separator, _), text in zip(pairs, texts, strict=True):
        if not separator or not key:
            raise ConfigError(f"--set {text}: write key=value.")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def engine_of(name: str, tasks: int, workers: int | None, settings: dict[str, Any]) -> Engine | None:
    """What does the first pass; None for processes of this machine. Raises `ConfigError` for an unknown name."""
    names = get_args(EngineName)
    if name not in names:
        raise ConfigError(f"--engine {name}: there is no such engine. {suggest(name, names)}")
    if name == "pool":
        return None
    count = workers or usable_cores()
    return partial(run_units, cast(EngineName, name), tasks=tasks, workers=count, settings=settings)
