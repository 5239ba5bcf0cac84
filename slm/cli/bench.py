"""`slm bench`: how fast things are, beside their peers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli.output import JsonFlag, console, emit_json, table

if TYPE_CHECKING:
    from slm.bench.results import Result


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Measurements beside peers.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("data")(data)
    verbs.command("train")(train)
    verbs.command("kernels")(kernels)
    app.add_typer(verbs, name="bench")


def data(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure this alone (may be repeated): tokenise, load, pack, resume, memory."),
    ] = None,
    mb: Annotated[
        float, typer.Option(help="Megabytes of text; everything else grows with it. 1 is a quick look.")
    ] = 50,
    repeats: Annotated[int, typer.Option(help="How often ours and the peer's take turns.")] = 3,
    work: Annotated[
        Path | None, typer.Option(help="Keep what is measured on here, for a next time (a gigabyte or two).")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table into this file, for the docs.")] = None,
    json: JsonFlag = False,
) -> None:
    """Tokenising, loading, packing, resuming and memory, beside datatrove and Grain on the same bytes.

    Peers and fast backends: pip install 'slm[bench]'. One that is missing is named and left out.
    """
    from slm.bench import results as r
    from slm.bench.data import run

    out = console(json)
    report, results = run(
        only or (),
        mb=mb,
        repeats=repeats,
        work=work,
        tell=lambda name: out.print(f"measuring: {name}"),
        found=lambda one: out.print("  " + "  ".join(cell for cell in r.rows([one])[0] if cell), markup=False),
    )
    if markdown is not None:
        flags = [f"--only {shlex.quote(name)}" for name in only or ()]
        command = " ".join(["slm bench data", *flags, f"--mb {mb:g} --repeats {repeats} --markdown {markdown.name}"])
        markdown.write_text(r.markdown("Benchmarks of the data rooms", report, results, command))
    _show(report, results, json)


def train(
    model: Annotated[
        str, typer.Option(help="The shape that everybody trains: tiny, quick, 10m, 30m or 135m (parameters).")
    ] = "quick",
    steps: Annotated[int, typer.Option(help="Steps that are timed, per turn.")] = 20,
    repeats: Annotated[int, typer.Option(help="How often the trainers take turns.")] = 3,
    threads: Annotated[int, typer.Option(help="torch's threads, in every trainer.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure this alone (may be repeated): beside, executed (on a GPU), overhead, records."),
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Keep text, tokenizer and store here, for a next time.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table into this file, for the docs.")] = None,
    json: JsonFlag = False,
) -> None:
    """Tokens per second beside Hugging Face's Trainer, litgpt and a plain loop: one shape, the same rows, in turns.

    Then what our loop adds to forward, backward and optimiser step, and what its records and checkpoints add to the loop.
    Peers: pip install 'slm[bench]'. One that is missing is named and left out.
    """
    from slm.bench import results as r
    from slm.bench.train import run

    out = console(json)
    report, results = run(
        only or (),
        model=model,
        steps=steps,
        repeats=repeats,
        threads=threads,
        device=device,
        work=work,
        tell=lambda what: out.print(f"measuring: {what}"),
        found=lambda one: out.print("  " + "  ".join(cell for cell in r.rows([one])[0] if cell), markup=False),
    )
    if markdown is not None:
        flags = [f"--only {name}" for name in only or ()]
        sizes = f"--model {model} --steps {steps} --repeats {repeats} --threads {threads}"
        command = " ".join(["slm bench train", *flags, sizes, f"--markdown {markdown.name}"])
        markdown.write_text(r.markdown("Benchmarks of the trainer", report, results, command))
    _show(report, results, json)


def kernels(
    only: Annotated[list[str] | None, typer.Option(help="Measure this op alone (may be repeated).")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave a peer out (may be repeated): eager, compile or liger.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One tiny shape per op: a look at whether all of it runs.")
    ] = False,
    tokens: Annotated[int | None, typer.Option(help="Tokens of a shape; 8192, or 32 if quick.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on a GPU by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    markdown: Annotated[Path | None, typer.Option(help="Write the table into this file, for the docs.")] = None,
    json: JsonFlag = False,
) -> None:
    """The ops of slm_kernels beside plain torch, torch.compile and Liger-Kernel: time, share of the device's floor, memory, error.

    At the widths of small models, forward, backward and both. Liger: pip install liger-kernel; without it is left out.
    """
    from slm.bench.kernels import table as t

    out = console(json)
    report, rows = t.run(
        only or (),
        without=without or (),
        device=device,
        dtype=dtype,
        tokens=tokens,
        quick=quick,
        tell=lambda what: out.print(f"measuring: {what}", markup=False),
    )
    if markdown is not None:
        flags = [*(f"--only {name}" for name in only or ()), *(f"--without {name}" for name in without or ())]
        flags += (
            ["--quick"] * quick + ([f"--tokens {tokens}"] if tokens else []) + ([f"--dtype {dtype}"] if dtype else [])
        )
        markdown.write_text(
            t.markdown(report, rows, " ".join(["slm bench kernels", *flags, f"--markdown {markdown.name}"]))
        )
    if json:
        emit_json(t.as_json(report, rows))
    else:
        table(list(t.COLUMNS), t.cells(rows), right=(4, 5, 6, 7))


def _show(report: dict[str, Any], results: "list[Result]", json: bool) -> None:
    from slm.bench import results as r

    if json:
        emit_json({**report, "results": [one.as_dict() for one in results]})
        return
    table(list(r.COLUMNS), r.rows(results), right=(1, 4, 5, 6))
    for note in dict.fromkeys(one.note for one in results if one.note):
        typer.echo(f"- {note}")
