"""The loader: batches of shuffled, packed, verified rows, beside Grain on the same store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from slm.bench.clock import Timing, in_turns, rates, timed
from slm.bench.corpus import Work
from slm.bench.machine import version
from slm.bench.results import Result, Target, result
from slm.data.loader import Loader, make_batch
from slm.data.plan import Plan
from slm.data.store import Split

SEQ_LEN, ROWS = 2048, 64
"""131,072 tokens a batch: a process's share of half a million among four."""
MOST = 8_000_000
"""Tokens that Grain reads, at most: its rate doesn't depend on how long it runs."""
VARIANTS = (("concat", 0), ("first-fit", 0), ("concat", None), ("first-fit", None))


def plan_of(work: Work, store: Split) -> Plan:
    """The plan of a made store; its packing is kept beside it."""
    return Plan([("made", store)], seq_len=SEQ_LEN, eot=0, cache_dir=work.root / "plans")


def run(work: Work) -> Iterator[Result]:
    """Tokens per second of processor time through `make_batch` on one thread, and through the `Loader`."""
    made = work.token_store(2 * work.mb)
    plan_of(work, made.open())  # the packing is made once, before any clock runs

    def ours(through: Callable[[Plan], float]) -> Timing:
        plan = plan_of(work, made.open())  # opened anew, so that every block is checked again
        return timed(lambda: through(plan))

    contestants: dict[str, Callable[[], Timing]] = {
        "one thread": partial(ours, _batches),
        "loader": partial(ours, _loader),
    }
    here = version("grain") is not None
    if here:
        for packer, threads in VARIANTS:
            contestants[_label(packer, threads)] = partial(_grain, work, packer, threads)
    timings = in_turns(contestants, work.repeats)
    tokens = timings["one thread"][0].amount
    note = (
        f"{tokens / 1e6:.1f} M tokens ({2 * work.mb:g} MB) in rows of {SEQ_LEN}, {ROWS} a batch: tokens, targets, positions, documents "
        "and cu_seqlens, every block's checksum compared; Grain has neither cu_seqlens nor checksums"
    )
    alone, loader = rates(timings["one thread"]), rates(timings["loader"])
    yield result("load, one thread", alone[0], "Mtok/s", target=Target(">=", 50), wall=(alone[1], None), note=note)
    yield result(
        "load, Loader (reads ahead)", loader[0], "Mtok/s", target=Target(">=", 50), wall=(loader[1], None), note=note
    )
    for packer, threads in VARIANTS:
        label = _label(packer, threads)
        theirs = rates(timings[label]) if here else None
        yield result(
            f"load, beside {label}",
            alone[0],
            "Mtok/s",
            peer="Grain" if here else "Grain (not installed)",
            peer_value=theirs and theirs[0],
            target=Target(">=", 5, "ratio"),
            wall=(alone[1], theirs and theirs[1]),
            note=note,
        )


def _label(packer: str, threads: int | None) -> str:
    return f"Grain {packer}, {'its default of threads' if threads is None else f'{threads} threads'}"


def _batches(plan: Plan) -> float:
    whole = plan.rows_per_epoch // ROWS
    places = 0
    for batch in range(whole):
        places += make_batch(plan, range(batch * ROWS, (batch + 1) * ROWS)).tokens_BT.numel()
    return float(places)


def _loader(plan: Plan) -> float:
    places = 0
    with Loader(plan, ROWS) as loader:
        for _ in range(plan.rows_per_epoch // ROWS):
            places += next(loader).tokens_BT.numel()
    return float(places)


def _grain(work: Work, packer: str, threads: int | None) -> Timing:
    from slm.bench.with_grain import Documents, dataset, read

    documents = Documents(work.token_store(2 * work.mb).open())
    data = dataset(documents, packer, seq_len=SEQ_LEN, rows=ROWS, threads=threads)  # type: ignore[arg-type]
    return timed(lambda: read(data, MOST))
