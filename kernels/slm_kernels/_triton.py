"""Triton where it is installed. Where it isn't, kernels are defined all the same and `MISSING` says why none can run."""

from __future__ import annotations

from typing import Any

MISSING: str = ""
"""Why there is no Triton; empty where there is."""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    MISSING = f"triton can't be imported ({error})"

    class _Absent:
        """Lets `@triton.jit` and `tl.constexpr` stand in a file that is only read for its torch path."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, first: Any = None, *args: Any, **kwargs: Any) -> Any:
            return first

    triton = tl = _Absent()

INTERPRETED: bool = not MISSING and bool(triton.knobs.runtime.interpret)
"""Whether kernels run as Python on CPU tensors (TRITON_INTERPRET=1, read once, when Triton decorates them): for tests."""


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


@triton.jit
def f32(scalar):  # type: ignore[no-untyped-def]
    """A float argument in fp32. torch.compile may hand over fp64, which would spread through all that it meets."""
    return tl.full((), scalar, tl.float32)
