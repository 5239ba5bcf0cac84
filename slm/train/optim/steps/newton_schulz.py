"""The nearest (semi-)orthogonal matrix, by products alone.

For M = U S V^T that matrix is U V^T. An odd polynomial of a matrix acts on its singular values and leaves U and V:

    a X + b (X X^T) X + c (X X^T)^2 X = U (a S + b S^3 + c S^5) V^T

so that repeating one that pushes numbers of (0, 1] towards 1, from X = M / |M|_F, ends near U V^T. What polynomial?

===============  ====================================================================================================
jordan           one polynomial whose slope at 0 is steep; singular values end within about 0.7 .. 1.2 after five steps,
                 which is enough (Jordan et al. 2024)
polar_express    another one at each step: the one that is closest to 1 on the interval where the values then are (a minimax
                 problem with a closed recursion, solved below; Amsel et al. 2025, arXiv 2505.16932)
classic          Newton-Schulz of order five, (15, -10, 3) / 8: exact in the limit, but slow for small singular values
===============  ====================================================================================================
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from slm.model.precision import fast_bf16
from slm_kernels import newton_schulz
from slm_kernels.newton_schulz import Coefficients

JORDAN: Coefficients = (3.4445, -4.7750, 2.0315)
CLASSIC: Coefficients = (15 / 8, -10 / 8, 3 / 8)
SMALLEST = 1e-3
"""Polar Express: singular values (relative to the norm) from here on are brought to 1 as fast as is possible."""
CUSHION = 0.02407327424182761
"""Polar Express: the interval's lower end is taken to be at least this share of the upper; without it the first steps amplify the
middle of the interval more than bf16 bears (the paper's value)."""
SAFETY = 1.01
"""Polar Express: room for rounding above 1, taken off all polynomials but the last (as the paper does)."""


def orthogonalise(update_NRC: Tensor, kind: str = "jordan", steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, about. Shape (N, rows, columns) in and out; inside bf16 where it is fast, else fp32."""
    room = SAFETY if kind == "polar_express" else 1.0
    return newton_schulz(update_NRC, polynomials(kind, steps), room=room, dtype=working_dtype(update_NRC))


def working_dtype(t: Tensor) -> torch.dtype:
    """What `orthogonalise` computes in. What is cast before (to send less) comes out the same."""
    return t.dtype if t.dtype == torch.float64 else torch.bfloat16 if fast_bf16(t.device) else torch.float32


@cache
def polynomials(kind: str, steps: int) -> tuple[Coefficients, ...]:
    """(a, b, c) of each step."""
    if kind == "polar_express":
        return _polar_express(steps)
    return ({"jordan": JORDAN, "classic": CLASSIC}[kind],) * steps


def _polar_express(steps: int) -> tuple[Coefficients, ...]:
    low, high, found = SMALLEST, 1.0, list[Coefficients]()
    for _ in range(steps):
        a, b, c = minimax(max(low, CUSHION * high), high)
        ends = sum(a * x + b * x**3 + c * x**5 for x in (low, high))
        a, b, c = (2 * t / ends for t in (a, b, c))  # the images of both ends equally far from 1
        found.append((a, b, c))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in found[:-1]]
    return (*safe, found[-1])


def minimax(low: float, high: float) -> Coefficients:
    """The odd polynomial of degree five whose largest distance from 1 on [low, high] is smallest.

    Its error takes its largest size, with alternating sign, at four points: both ends and the two extremes between. Solve for
    the coefficients at a guess of these points, move the points to the extremes, repeat (Remez).
    """
    if low / high >= 1 - 5e-6:  # the limit of an empty interval, where the equations become singular
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner, error = ((3 * low + high) / 4, (low + 3 * high) / 4), np.inf
    for _ in range(100):
        points = np.array([low, *inner, high])
        system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        a, b, c, reached = map(float, np.linalg.solve(system, np.ones(4)))
        if abs(reached - error) < 1e-15:
            break
        error, root = reached, float(np.sqrt(9 * b * b - 20 * a * c))  # roots of p'(x) = a + 3 b x^2 + 5 c x^4
        inner = (float(np.sqrt((-3 * b - root) / (10 * c))), float(np.sqrt((-3 * b + root) / (10 * c))))
    return a, b, c
