"""Rows of the table: every contestant, forward, backward and both, at every case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from slm.bench.kernels.cases import CASES, Case, Work, cases
from slm.bench.kernels.peers import PEERS, contestants, has_liger, our_impl
from slm.bench.kernels.timing import Clock, Time
from slm.bench.machine import machine, version
from slm.config.errors import ConfigError, suggest
from slm.cost.device import bandwidth, peak_flops

ERROR_TOKENS = 128
"""Tokens at which errors against fp64 are measured."""
NAMES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Row:
    """One contestant in one direction. ``fraction``: the floor's time over the measured one, None where the device's peaks aren't known;
    ``memory``: most bytes beyond the inputs in forward and backward; ``error``: the largest relative L2 error of outputs and gradients."""

    op: str
    shape: str
    contestant: str
    mode: str
    dtype: str
    ms: float
    ms_p20: float
    ms_p80: float
    bytes: float
    flops: float
    fraction: float | None
    memory: int | None
    error: float | None


def run(
    only: Sequence[str] = (),
    *,
    without: Sequence[str] = (),
    device: str = "auto",
    dtype: str | None = None,
    tokens: int | None = None,
    quick: bool = False,
    seconds: float = 0.15,
    tell: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, Any], list[Row]]:
    """Measure. Returns (what it was measured on, rows).

    Args:
        only: ops; none: all of `CASES`.
        without: peers to leave out: eager, compile (whose code takes seconds to make for each case) or liger.
        dtype: of the numbers; bfloat16 on a GPU by default, float32 on a CPU.
        tokens: 8192 by default, 32 if ``quick``.
        quick: one tiny shape per op.
        seconds: of runs per contestant and mode.

    Raises:
        ConfigError: an op or dtype that there isn't, or a device that isn't there.
    """
    for name in only:
        if name not in CASES:
            raise ConfigError(f"slm bench kernels has no op {name!r}. {suggest(name, CASES)}")
    for name in without:
        if name not in PEERS:
            raise ConfigError(f"There is no peer {name!r} to leave out. {suggest(name, PEERS)}")
    place = _device(device)
    kind = dtype or ("bfloat16" if place.type == "cuda" else "float32")
    if kind not in NAMES:
        raise ConfigError(f"There is no dtype {kind!r} to measure in. {suggest(kind, NAMES)}")
    numbers: torch.dtype = getattr(torch, kind)
    clock, rows = Clock(place, 0.01 if quick else seconds), list[Row]()
    count = tokens or (32 if quick else 8192)
    for case in cases(only, tokens=count, size=numbers.itemsize, quick=quick):
        tell(f"{case.op}, {case.shape}")
        # Backward passes are repeated on one graph, which compiled code allows only if it keeps its buffers.
        with torch._functorch.config.patch(donated_buffer=False):
            rows += _rows(case, place, numbers, clock, without)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    report = {
        "device": name,
        "machine": machine(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "liger": version("liger-kernel") if has_liger() else None,
        "ours": our_impl(place),
        "peaks": {"flops": peak_flops(name), "bytes_per_second": bandwidth(name)},
    }
    return report, rows


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not there):
        raise ConfigError(
            f"There is no device {name!r} here to measure. Choose {'cpu, cuda' if there else 'cpu'} or auto."
        )
    return torch.device(("cuda" if there else "cpu") if name == "auto" else name)


def _rows(case: Case, device: torch.device, dtype: torch.dtype, clock: Clock, without: Sequence[str]) -> Iterator[Row]:
    calls = contestants(case, device, without)
    inputs = _inputs(case, case.tokens, device, dtype)
    errors = _errors(case, calls, device, dtype)
    memory = {name: _memory(call, inputs, device) for name, call in calls.items()}
    for mode, work in _modes(case).items():
        times = clock.in_turns({name: _work(call, inputs, mode) for name, call in calls.items()})
        for name, time in times.items():
            yield _row(case, name, mode, dtype, time, work, device, memory[name], errors[name])


def _row(
    case: Case, name: str, mode: str, dtype: torch.dtype, time: Time, work: Work, device: torch.device,
    memory: int | None, error: float | None,
) -> Row:  # fmt: skip
    floor = _floor(work, device, dtype)
    return Row(
        case.op, case.shape, name, mode, str(dtype).removeprefix("torch."), *time, work.bytes, work.flops,
        None if floor is None else 1e3 * floor / time.median, memory, error,
    )  # fmt: skip


def _floor(work: Work, device: torch.device, dtype: torch.dtype) -> float | None:
    """Seconds below which the device can't do it, by its data sheet, which is read for 16 bits; None where that isn't known."""
    if dtype.itemsize != 2:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    flops, moved = peak_flops(name), bandwidth(name)
    return None if flops is None or moved is None else max(work.flops / flops, work.bytes / moved)


def _modes(case: Case) -> dict[str, Work]:
    if case.back is None:
        return {"fwd": case.forward}
    both = Work(case.forward.bytes + case.back.bytes, case.forward.flops + case.back.flops)
    return {"fwd": case.forward, "bwd": case.back, "full": both}


def _inputs(case: Case, tokens: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Made on the CPU, the same for everybody. Tables that get no gradient stay fp32 at least."""
    found = []
    for i, t in enumerate(case.make(tokens)):
        if not t.is_floating_point():
            found.append(t.to(device))
            continue
        table = i in case.fixed and t.shape[-1] * 2 in {x.shape[-1] for x in found}  # cosines and sines
        kind = torch.promote_types(dtype, torch.float32) if table else dtype
        found.append(t.to(device, kind).requires_grad_(case.back is not None and i not in case.fixed))
    return found


def _outputs(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _both(call: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients, for the same incoming gradients every time."""
    outputs = _outputs(call(*inputs))
    wanted = [t for t in inputs if t.requires_grad]
    sent = [_incoming(t) for t in outputs]
    return [*outputs, *(torch.autograd.grad(outputs, wanted, sent) if wanted else ())]


def _incoming(out: Tensor) -> Tensor:
    if not out.ndim:
        return torch.ones_like(out)
    made = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    return made.to(out.device, out.dtype)


def _work(call: Callable[..., Any], inputs: list[Tensor], mode: str) -> Callable[[], object]:
    """What is timed. A backward pass is timed by itself on a graph that is kept."""
    wanted = [t for t in inputs if t.requires_grad]
    if mode == "fwd":
        return lambda: call(*inputs)
    outputs = _outputs(call(*inputs))
    sent = [_incoming(t) for t in outputs]
    if mode == "bwd":
        return lambda: torch.autograd.grad(outputs, wanted, sent, retain_graph=True)
    return lambda: torch.autograd.grad(_outputs(call(*inputs)), wanted, sent)


def _memory(call: Callable[..., Any], inputs: list[Tensor], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    _both(call, inputs)  # what is made once, such as compiled code and libraries' workspaces
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _both(call, inputs)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _errors(
    case: Case, calls: Mapping[str, Callable[..., Any]], device: torch.device, dtype: torch.dtype
) -> dict[str, float | None]:
    """The largest relative L2 error of an output or gradient, against plain torch in fp64 on the rounded inputs. Compiled code isn't
    asked: it is made anew for another number of tokens, and computes what eager does."""
    inputs = _inputs(case, min(case.tokens, ERROR_TOKENS), device, dtype)
    wide = [t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in inputs]
    exact = [t.detach() for t in _both(case.plain, wide)]

    def error(call: Callable[..., Any]) -> float:
        worst = 0.0
        for found, wanted in zip(_both(call, inputs), exact, strict=True):
            norm = float(wanted.norm())
            worst = max(worst, float((found.detach().double() - wanted).norm()) / (norm or 1.0))
        return worst

    return {name: None if name == "compile" else error(call) for name, call in calls.items()}


COLUMNS = ("op", "shape", "by", "mode", "ms", "of the floor", "memory", "error")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Rows of a table, under `COLUMNS`."""
    return [
        [
            r.op, r.shape, r.contestant, r.mode, f"{r.ms:.3g}", "" if r.fraction is None else f"{r.fraction:.0%}",
            "" if r.memory is None else f"{r.memory / 2**20:,.0f} MiB", f"{r.error:.1e}" if r.error is not None else "",
        ]
        for r in rows
    ]  # fmt: skip


def as_json(report: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Plain data."""
    return report | {"rows": [asdict(r) for r in rows]}


def markdown(report: dict[str, Any], rows: Sequence[Row], command: str) -> str:
    """A page of documentation."""
    peaks = report["peaks"]
    known = all(peaks.values())
    floor = (
        f"*Of the floor*: the time that {peaks['bytes_per_second'] / 1e12:.2f} TB/s and {peaks['flops'] / 1e12:.0f} TFLOP/s allow, over the "
        "median."
        if known
        else "The device's peaks aren't known, so no share of a floor is given."
    )
    head = [
        "# Benchmarks of the kernels", "",
        f"Written by `{command}` on {report['machine']['date']}; do not edit.", "",
        f"Device: {report['device']}; torch {report['torch']}, triton {report['triton'] or 'not installed'}, liger-kernel "
        f"{report['liger'] or 'not installed'}; ours: {report['ours']}. {floor} Memory: the most that forward and backward hold beyond their "
        "inputs. Error: the largest relative L2 error of outputs and gradients, against fp64.", "",
        "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS),
    ]  # fmt: skip
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in cells(rows))]) + "\n"
