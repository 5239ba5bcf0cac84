"""`slm study`: run an ablation and say what it shows."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    pass
