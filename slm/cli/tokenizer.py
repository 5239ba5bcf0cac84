"""`slm tokenizer`: train a tokenizer on text of your own, and see what tokenizers are worth on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli.output import JsonFlag, console, emit_json, table

if TYPE_CHECKING:
    from slm.data.sources import SourcePart
    from slm.data.tokenizer import Tokenizer

Sources = Annotated[
    list[str] | None, typer.Argument(metavar="[SRC]...", help="Sources of text; none: the standard library's sources.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A preset, to say what share the vocabulary takes of it.")
]
ReportBytes = Annotated[int, typer.Option(min=1, help="Bytes of every source to report on.")]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Tokenizers.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("train")(train)
    verbs.command("report")(report)
    app.add_typer(verbs, name="tokenizer")


def train(
    out: Annotated[Path, typer.Option(help="The file to write: a tokenizer.json, or a sentencepiece .model.")],
    sources: Sources = None,
    kind: Annotated[str, typer.Option(help="bpe (byte-level), sp-bpe or sp-unigram (sentencepiece).")] = "bpe",
    vocab: Annotated[int, typer.Option(min=257, help="Size of the vocabulary.")] = 4096,
    pretokenizer: Annotated[
        str | None, typer.Option(help="How --kind bpe cuts text into words: qwen2 (default), gpt2, llama3, ...")
    ] = None,
    special: Annotated[list[str] | None, typer.Option(help="A further special token; may be repeated.")] = None,
    sample_bytes: Annotated[int | None, typer.Option(min=1, help="Train on so many bytes of all sources.")] = None,
    document_chars: Annotated[int | None, typer.Option(min=1, help="Take so much of one document.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take one document in so many.")] = 1,
    report_bytes: ReportBytes = 20_000_000,
    model: ModelName = None,
    json: JsonFlag = False,
) -> None:
    """Train a tokenizer and report on it."""
    from slm.config.errors import ConfigError, suggest
    from slm.config.files import write_durably
    from slm.data.tokenizer import Trained, interleaved, tokenizer

    kinds = [name for name, part in tokenizer.parts.items() if issubclass(part, Trained)]
    if kind not in kinds:
        raise ConfigError(f"--kind {kind}: no such kind of tokenizer. {suggest(kind, kinds)}")
    given = {
        "pretokenizer": pretokenizer,
        "specials": tuple(special or ()) or None,
        "sample_bytes": sample_bytes,
        "document_chars": document_chars,
    }
    part = tokenizer.parse({"name": kind, "vocab": vocab, "stride": stride} | {k: v for k, v in given.items() if v})
    texts = _texts(sources)
    with console(json).status("training the tokenizer"):
        trained = part.load(lambda: interleaved([source() for source in texts.values()]))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, trained.to_bytes())
    _show([(str(out), trained)], texts, report_bytes, model, json, single=True)


def report(
    file: Annotated[str, typer.Argument(metavar="TOKENIZER", help="A tokenizer file, or a directory with one.")],
    sources: Sources = None,
    against: Annotated[list[str] | None, typer.Option(help="Another tokenizer beside it; may be repeated.")] = None,
    eot: Annotated[str | None, typer.Option(help="The end-of-text token, where the file has several.")] = None,
    pretokenizer: Annotated[str | None, typer.Option(help="How text is cut, for .tiktoken files.")] = None,
    report_bytes: ReportBytes = 20_000_000,
    model: ModelName = None,
    json: JsonFlag = False,
) -> None:
    """What tokenizers are worth on a text: bytes per token, fertility, unused tokens, digits, losses."""
    from slm.data.tokenizer import tokenizer

    settings = {k: v for k, v in {"eot": eot, "pretokenizer": pretokenizer}.items() if v}
    loaded = []
    for number, path in enumerate([file, *(against or [])]):
        own = settings if number == 0 else {}
        part = tokenizer.parse({"name": "file", "path": path, "lossy": True, **own})
        loaded.append((path, part.load(lambda: [])))
    _show(loaded, _texts(sources), report_bytes, model, json)


def _texts(sources: list[str] | None) -> "dict[str, Callable[[], Iterable[str]]]":
    """The texts of every source, by what was typed."""

    def texts_of(source: "SourcePart") -> "Callable[[], Iterable[str]]":
        return lambda: (document.text for document in source.documents())

    return {text: texts_of(_source(text)) for text in sources or ["stdlib"]}


def _source(text: str) -> "SourcePart":
    """The source that a text on the command line means."""
    from slm.data import sources

    if (choose := getattr(sources, "source_of", None)) is not None:
        return choose(text)  # type: ignore[no-any-return]
    return sources.Stdlib() if text == "stdlib" else sources.Local(paths=(text,))


def _show(
    loaded: "list[tuple[str, Tokenizer]]",
    texts: "dict[str, Callable[[], Iterable[str]]]",
    report_bytes: int,
    model: str | None,
    json: bool,
    single: bool = False,
) -> None:
    """Print reports, side by side: as JSON, one object for the one tokenizer of `train`, a list for `report`."""
    from slm.data.tokenizer.report import report as measure

    with console(json).status("encoding"):
        found = [{"path": path, **measure(t, texts, report_bytes), **_share(model, t)} for path, t in loaded]
    if json:
        first = found[0]["sources"][0]["bytes_per_token"]
        emit_json({**found[0], "bytes_per_token": first} if single else {"tokenizers": found})
        return
    table(
        ["tokenizer", "source", "documents", "bytes/token", "tokens/word", "pieces of characters"],
        [
            [
                one["path"],
                s["source"],
                f"{s['documents']:,}",
                f"{s['bytes_per_token']:.3f}",
                f"{s['tokens_per_word']:.3f}",
                f"{s['fallback_share']:.2%}",
            ]
            for one in found
            for s in one["sources"]
        ],
        right=(2, 3, 4, 5),
    )
    rows = _ROWS if model is None else {**_ROWS, "share of the model": _share_in_words}
    table(["tokenizer", *(one["path"] for one in found)], [[name, *map(cell, found)] for name, cell in rows.items()])


def _share(model: str | None, tokenizer: "Tokenizer") -> dict[str, Any]:
    """What a preset would be with this vocabulary."""
    if model is None:
        return {}
    from slm.data.tokenizer.report import vocabulary_share
    from slm.model.presets import load_preset

    params = load_preset(model).with_(vocab=tokenizer.vocab_size).costs().params
    return {"model": {"name": model, "params": params["unique"], "vocabulary_share": vocabulary_share(params)}}


def _share_in_words(one: dict[str, Any]) -> str:
    of = one["model"]
    return f"{of['vocabulary_share']:.1%} of {of['name']}'s {of['params']:,} parameters"


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "kind": lambda one: one["kind"],
    "vocabulary": lambda one: f"{one['vocab_size']:,} ({one['special_tokens']} special)",
    "end of text": lambda one: one["eot"],
    "words are cut like": lambda one: one["pretokenizer"] or "(no name for it)",
    "unused in these samples": lambda one: f"{one['unused_share']:.2%}",
    "digits": lambda one: f"up to {one['digits']['longest']} together: {' '.join(one['digits']['example'])}",
    "random texts that come back": lambda one: "{passed} of {texts}".format(**one["round_trip"]),
    "what text loses": lambda one: one["loss"] or "nothing",
    "longest tokens": lambda one: ", ".join(map(repr, one["longest_tokens"])),
}
"""Figures that don't depend on the source."""
