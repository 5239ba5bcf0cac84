"""Two processes with halves of every tensor come to what one process with the whole comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from train.optim.cases import PARTS

from slm.train.optim.steps.shards import Exchange, Split

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(WORKER.parents[2]), *(p for p in sys.path if p)]),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder / "rendezvous"), str(folder / "result.json")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for worker in workers:
            out, _ = worker.communicate(timeout=300)
            assert worker.returncode == 0, out
    finally:
        for worker in workers:
            worker.kill()
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("case", PARTS)
def test_rows(measured: dict[str, dict[str, Any]], case: str) -> None:
    """As FSDP2 cuts. One step of five is called off."""
    assert measured["rows"][case]["weights"] < 1e-6
    assert measured["rows"][case]["state"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", ["muon", "muon variants", "soap", "lion", "adam_mini", "schedule_free"])
def test_rows_are_bit_for_bit_the_same_weights(measured: dict[str, dict[str, Any]], case: str) -> None:
    """A matrix is computed by one process, from the same numbers."""
    assert measured["rows"][case]["weights"] < 1e-12


@pytest.mark.slow
def test_replicas_of_shards_and_columns(measured: dict[str, dict[str, Any]]) -> None:
    for way in ("hsdp", "columns"):
        for case, found in measured[way].items():
            assert found["weights"] < 1e-6, (way, case)
            assert found["state"] < 1e-5, (way, case)


@pytest.mark.slow
def test_a_decoder_under_fsdp2(measured: dict[str, dict[str, Any]]) -> None:
    """The gradients differ by rounding, and Adam's first steps divide small ones by themselves."""
    assert measured["decoder"].keys() == {"adamw", "muon", "adafactor"}
    for case, found in measured["decoder"].items():
        assert found < 1e-3, case


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize(("rows", "columns", "count", "size"), [(7, 5, 3, 2), (8, 6, 4, 4), (1, 9, 5, 3), (4, 4, 1, 4), (3, 10, 6, 5)])  # fmt: skip
def test_pieces_reach_their_owners_and_come_back(
    rows: int, columns: int, count: int, size: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks in one process: what each sends is handed to the others."""
    matrices = torch.arange(count * rows * columns, dtype=torch.float32).view(count, rows, columns)
    ranks = [Exchange(Split(dim, None, r, size), rows, columns, count, first=3) for r in range(size)]
    extents = [e.extent(e.split.rank)[dim] for e in ranks]
    assert sum(extents) == matrices.shape[dim]
    held = [list(part) for part in matrices.split(extents, dim)]
    sent: dict[int, list[torch.Tensor]] = {}

    def record(
        exchange: Exchange, send: torch.Tensor, receive_counts: list[int], send_counts: list[int]
    ) -> torch.Tensor:
        sent[exchange.split.rank] = list(send.split(send_counts))
        return send.new_zeros(sum(receive_counts))

    def deliver(
        exchange: Exchange, send: torch.Tensor, receive_counts: list[int], send_counts: list[int]
    ) -> torch.Tensor:
        parts = [sent[source][exchange.split.rank] for source in range(size)]
        assert [p.numel() for p in parts] == receive_counts
        return torch.cat(parts)

    def all_ranks(method: str, arguments: list[Any]) -> list[Any]:
        monkeypatch.setattr(Exchange, "_swap", record)
        for exchange, argument in zip(ranks, arguments, strict=True):
            getattr(exchange, method)(argument)
        monkeypatch.setattr(Exchange, "_swap", deliver)
        return [getattr(e, method)(a) for e, a in zip(ranks, arguments, strict=True)]

    owned = all_ranks("gather", held)
    assert sorted(i for e in ranks for i in e.mine) == list(range(count))
    for exchange, mine in zip(ranks, owned, strict=True):
        assert torch.equal(mine, matrices[exchange.mine])
    for before, after in zip(held, all_ranks("scatter", owned), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
