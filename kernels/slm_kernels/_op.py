"""A pair of launchers as one differentiable operation, in eager mode and under torch.compile.

In eager mode a torch.library operator costs tens of microseconds per call, more than small kernels take: there the
launchers are called from a plain `autograd.Function`. While torch.compile traces, the same launchers stand behind
torch.library operators, which are opaque: no graph break, no unrolled loops, and no Python float that Inductor hands to a
kernel as fp64. So they do for fake tensors (a plan of memory, an export), on which no kernel can run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

Launcher = Callable[..., Any]


class Differentiable:
    """``forward(*args)`` returns tensors, ``setup(ctx, inputs, output)`` keeps what the way back needs, and
    ``backward(launch, ctx, *grads)`` returns one gradient per argument; ``launch`` is ``backward_launcher``, directly or
    as an operator. ``fake`` and ``fake_backward`` return empty outputs of the right shapes. Gradients that nobody gave are
    None in ``backward``."""

    def __init__(
        self,
        name: str,
        forward: Launcher,
        *,
        fake: Launcher,
        setup: Callable[..., None],
        backward: Callable[..., Any],
        backward_launcher: Launcher | None = None,
        fake_backward: Launcher | None = None,
    ) -> None:
        def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            setup(ctx, inputs, output)

        operator = torch.library.custom_op(f"slm_kernels::{name}", forward, mutates_args=())
        operator.register_fake(fake)
        back: Launcher | None = None
        if backward_launcher is not None and fake_backward is not None:
            back = torch.library.custom_op(f"slm_kernels::{name}_backward", backward_launcher, mutates_args=())
            back.register_fake(fake_backward)
        operator.register_autograd(partial(backward, back), setup_context=keep)
        members = {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(keep),
            "backward": staticmethod(once_differentiable(partial(backward, backward_launcher))),
        }
        self.operator = operator
        self.function: Any = type(f"{name}_function", (torch.autograd.Function,), members)

    def __call__(self, *args: Any) -> Any:
        opaque = torch.compiler.is_compiling() or any(isinstance(a, FakeTensor) for a in args)
        return self.operator(*args) if opaque else self.function.apply(*args)
