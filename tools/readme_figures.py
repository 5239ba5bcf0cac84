"""Draw the README's curve from a finished run: ``python tools/readme_figures.py runs/quickstart docs/img/quickstart.svg``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from slm.report.charts import standalone
from slm.report.run import bpb_chart


def main(run_dir: Path, out: Path) -> None:
    """Write the bits-per-byte chart of a run as a stand-alone SVG on white."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text())
    by_kind = {kind: [r for r in records if r["kind"] == kind] for kind in ("train", "eval")}
    out.write_text(standalone(bpb_chart(by_kind["train"], by_kind["eval"], summary)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
