"""The model card of an export: what it is, what it was trained on, how the export was proven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slm.checkpoint import Restored

if TYPE_CHECKING:
    from slm.export.verify import Comparison

SIGNATURE = "Exported with slm."
"""Stands in every card: by it `slm.export.place` knows a directory as an export that may be replaced."""


def _text(data: dict[str, Any]) -> str:
    """What was read: several sources by their names, or the kind of the only one."""
    if data.get("sources"):
        return ", ".join(data["sources"])
    return str(data["source"]["name"]) if data.get("source") else f"the token store `{data['store']}`"


def model_card(restored: Restored, architecture: str, comparison: "Comparison") -> str:
    """README.md of an exported directory."""
    config, state = restored.config, restored.state
    params = restored.model.config.costs().params
    rows = [("context", f"{restored.model.config.context} tokens")]
    if "data" in config:
        rows += [
            ("trained on", f"rows of {restored.context} tokens"),
            ("training tokens", f"{state['tokens']:,} ({state['tokens'] / params['unique']:.3g} per parameter)"),
            ("text", _text(config["data"])),
            ("experiment", f"`{state['identity']}`"),
        ]
    else:
        rows.append(("weights", f"imported from `{config['imported_from']}`"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {config["name"]}

{SIGNATURE} A decoder-only transformer with {params["unique"]:,} parameters ({params["non_embedding"]:,} without
embeddings), as `{architecture}`.

| | |
|---|---|
{table}

Documents are separated by `<|endoftext|>`; begin a prompt with it.

Verified against slm in fp32 on {comparison.positions:,} positions: max |logit difference| {comparison.max_abs_diff:.1e},
mean KL {comparison.kl:.1e} nats, top-1 agreement {comparison.top1_agreement:.2%}.
"""
