"""Which implementation of an op runs: asked for by name, or chosen with a reason that can be read afterwards.

``torch``    plain torch operations: everywhere, and the oracle of the tests.
``triton``   the kernels of this package. Refused with a reason where they can't run; never replaced silently.
``compile``  the torch implementation through torch.compile.
``auto``     triton where it can run and pays, else torch.

Per call ``rms_norm(x, w, impl="triton")``; for a stretch of code ``with use("triton"):``; for the process ``set_default``. Code that
has plain operations of its own asks `fused` whether the op would do more than they.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_kernels._triton import INTERPRETED, MISSING

GRAPHS = 64
"""Most graphs of a function: other ranks, strides, windows, options; training and evaluation."""
IMPLEMENTATIONS = ("auto", "triton", "torch", "compile")
_log = logging.getLogger("slm_kernels")
_default = {"impl": "auto"}


class Unsupported(ValueError):
    """The implementation that was asked for can't do this call; the text says why and what can."""


class Choice(NamedTuple):
    """An implementation and why it was taken."""

    impl: str
    reason: str


@dataclass
class Op:
    """One operation. ``torch`` and ``triton`` take the same arguments; ``why_not`` returns what stops the kernel from
    doing a call, or an empty string."""

    name: str
    torch: Callable[..., Any]
    triton: Callable[..., Any]
    why_not: Callable[..., str]
    fused_by_inductor: bool = False
    """Whether torch.compile makes as good a kernel of the torch implementation, together with its neighbours."""
    why_slow: Callable[..., str] = lambda *args, **kwargs: ""
    """Why "auto" shouldn't take the kernel for a call that it could do; empty if it should."""
    compiled: Callable[..., Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        OPS[self.name] = self

    def __call__(self, impl: str | None, *args: Any, **kwargs: Any) -> Any:
        """The op by the implementation asked for, the process's default where that is None."""
        choice = self.choose(impl or _default["impl"], args, kwargs)
        if choice.impl == "compile" and _watched():
            choice = Choice("torch", "somebody watches the operations, and torch compiles nothing then")
        if not torch.compiler.is_compiling():
            _note(self.name, choice)
        if choice.impl == "triton":
            return self.triton(*args, **kwargs)
        if choice.impl == "compile" and not torch.compiler.is_compiling():
            if self.compiled is None:
                self.compiled = one_graph(self.torch)
            return self.compiled(*args, **kwargs)
        return self.torch(*args, **kwargs)

    def choose(self, impl: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice:
        """What will run, and why.

        Raises:
            Unsupported: ``impl`` is "triton" and can't do it.
            ValueError: there is no such implementation.
        """
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl={impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
        if impl in ("torch", "compile"):
            return Choice(impl, "asked for")
        why_not = unable(self, args, kwargs)
        if impl == "triton":
            if why_not:
                raise Unsupported(f"slm_kernels.{self.name}: impl=triton can't do this: {why_not}. impl=torch can.")
            return Choice("triton", "asked for")
        if not why_not and INTERPRETED:
            why_not = "kernels are interpreted, which is for tests"
        if not why_not and self.fused_by_inductor and torch.compiler.is_compiling():
            why_not = "torch.compile fuses the plain operations as well"
        why_not = why_not or self.why_slow(*args, **kwargs)
        return Choice("torch", why_not) if why_not else Choice("triton", "it can do this")


def _watched() -> bool:
    """Whether somebody counts or records operations, who wants to see them."""
    return torch._C._len_torch_dispatch_stack() > 0


def one_graph(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Through torch.compile (with its ``options``), as one graph or with an error: beyond 8 graphs, or around what it can't trace, torch
    would run it plainly without a word."""
    import torch._dynamo.config as config  # takes a second to import

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    return torch.compile(function, fullgraph=True, **options)


OPS: dict[str, Op] = {}
"""By name; filled as the ops' modules are imported."""


def unable(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why the op's kernel can't do this call; empty if it can."""
    if MISSING:
        return MISSING
    devices = {t.device.type for t in (*args, *kwargs.values()) if isinstance(t, Tensor)}
    if len(devices) > 1:
        return f"tensors are on different devices ({', '.join(sorted(devices))})"
    device = devices.pop() if devices else "cpu"
    if device != "cuda" and not (device == "cpu" and INTERPRETED):
        return _elsewhere(device)
    return op.why_not(*args, **kwargs)


def supported(name: str, *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """Whether the Triton kernel of op ``name`` can do a call with these arguments, and if not, why."""
    reason = unable(OPS[name], args, kwargs)
    return not reason, reason


def fused(name: str, *args: Any, **kwargs: Any) -> bool:
    """Whether op ``name``, called with these arguments (the ones of its `Op`) and no ``impl``, would run a kernel or be compiled. If
    not, a caller with plain operations of its own may as well run those.

    Raises:
        Unsupported: the default is "triton", and it can't do this.
    """
    op = OPS[name]
    choice = op.choose(_default["impl"], args, kwargs)
    if choice.impl != "torch":
        return True
    if not torch.compiler.is_compiling():
        _note(name, choice)
    return False


def set_default(impl: str) -> None:
    """What runs where a call doesn't say: "auto" at first. Raises ValueError if there is no such implementation."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    _default["impl"] = impl


@contextmanager
def use(impl: str) -> Iterator[None]:
    """`set_default` for a while. Holds for all threads; a backward pass uses what its forward pass used."""
    before = _default["impl"]
    set_default(impl)
    try:
        yield
    finally:
        _default["impl"] = before


_noted: dict[str, set[Choice]] = {}


def _note(name: str, choice: Choice) -> None:
    seen = _noted.setdefault(name, set())
    if choice not in seen:
        seen.add(choice)
        _log.info("%s: %s (%s)", name, choice.impl, choice.reason)


def forget() -> None:
    """Empty what `chosen` tells, as at the beginning of a run."""
    _noted.clear()


def unavailable(device: torch.device) -> str:
    """Why no kernel can run on a device, whatever the op; empty if they can."""
    if MISSING:
        return MISSING
    usable = device.type == "cuda" or (device.type == "cpu" and INTERPRETED)
    return "" if usable else _elsewhere(device.type)


def _elsewhere(device: str) -> str:
    return f"tensors are on {device}"


def usual(device: torch.device) -> dict[str, Choice]:
    """What "auto" takes for each op on a device, as far as that doesn't depend on the call."""
    why = unavailable(device) or ("kernels are interpreted, which is for tests" if INTERPRETED else "")
    if why:
        return dict.fromkeys(OPS, Choice("torch", why))
    alone, fused_too = "it can do most calls", "it can do most calls; under torch.compile, which fuses as well, torch"
    return {name: Choice("triton", fused_too if op.fused_by_inductor else alone) for name, op in OPS.items()}


def chosen() -> dict[str, list[Choice]]:
    """What has run so far in this process, per op; each choice is also logged once, to the logger ``slm_kernels``."""
    return {name: sorted(choices) for name, choices in _noted.items()}
