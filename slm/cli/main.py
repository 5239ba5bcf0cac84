"""`slm`: collects the verbs and turns errors into one paragraph and an exit code.

Verbs import what they need when they run, so that ``slm --help`` is instant.

Exit codes: 0 done; 1 the work failed; 2 what was asked for can't be right; 75 training was stopped at a
step boundary and the same command resumes it; 130 interrupted elsewhere.
"""

from __future__ import annotations

import sys

import typer

from slm.cli import (
    bench,
    checkpoint,
    data,
    distill,
    doctor,
    evaluate,
    export,
    generate,
    launch,
    model,
    parts,
    plan,
    report,
    study,
    tokenizer,
    train,
    watch,
)

app = typer.Typer(
    name="slm",
    help="Train small language models, ablate their parts, export them with proof.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    train,
    launch,
    watch,
    report,
    plan,
    model,
    parts,
    tokenizer,
    data,
    evaluate,
    generate,
    export,
    checkpoint,
    study,
    distill,
    bench,
    doctor,
):
    verb.register(app)


def main() -> None:
    """Entry point of the console script."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    from slm.config.errors import SlmError

    try:
        app(args=arguments, prog_name="slm")
    except SlmError as error:
        if debug:
            raise
        print(f"slm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("slm: interrupted. The same command goes on from what is saved.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `slm parts | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if debug or error.filename is None:
            raise
        print(f"slm: {error.filename}: {error.strerror}. (--debug shows where.)", file=sys.stderr)
        sys.exit(1)
