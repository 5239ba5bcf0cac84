"""The errors a user may see: one paragraph each, with an exit code.

Anything that is the user's to mend is raised as one of these two classes, and the command line prints
its text without a traceback. Anything else is a bug in slm and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

RESUMABLE = 75
"""Exit code (EX_TEMPFAIL) of a run that was stopped at a step boundary and that the same command resumes."""


class SlmError(Exception):
    """A failure that is explained in one paragraph: what, where, and what to do about it."""

    exit_code = 1


class RunError(SlmError):
    """The work itself failed: a corrupt file, a full disk, a diverged run (exit code 1)."""


class ConfigError(SlmError):
    """What was asked for can't be right: an unknown key, an impossible shape (exit code 2)."""

    exit_code = 2


class NoSuchText(ConfigError):
    """A source's files aren't where they are said to be (any more)."""


def suggest(name: str, options: Iterable[str], *, limit: int = 8) -> str:
    """Return a sentence that points from a misspelt ``name`` to what exists.

    One close match gives "Did you mean 'x'?"; none gives the list of what there is, cut to ``limit``.
    """
    known = sorted(set(options))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # an abbreviation or a prefix: "tok_per_param" is no close match in difflib's sense
        close = [k for k in known if name and (k.startswith(name) or name.startswith(k))][:1]
    if close:
        return f"Did you mean {close[0]!r}?"
    if not known:
        return "There is none."
    more = f", and {len(known) - limit} more" if len(known) > limit else ""
    return f"There are: {', '.join(known[:limit])}{more}."
