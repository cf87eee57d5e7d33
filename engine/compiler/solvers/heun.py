"""Heun's method in sigma, and EDM's sampler without churn (Karras et al., arXiv 2206.00364, algorithm 1).

    d_s = net(x_s, s)          y = phi(d_s, x_s, s -> t)          Euler
    d_t = net(y, t)          x_t = phi((d_s + d_t) / 2, x_s, s -> t)   the trapezoid, from x_s again

In eps, phi is Euler for x / alpha in sigma / alpha, which is EDM's x in its sigma; in the velocity of a flow it is
Euler in t; in x0 it is Euler for x / sigma in alpha / sigma.

`heun` takes 2 evaluations in every step, 2n in all, and all its steps end at trained times. Before a clean point, a
step with the last eps removes the remaining noise at no cost. `edm` ends with an Euler step: 2n - 1 evaluations, as EDM
counts them, and the last step may end at the clean point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ...errors import InputError
from ..basis import basis_row, solve, x_row
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, InUsersBasis, Vector
from .block import BlockSolver
from .ddim import check_mixing, phi


def trapezoid(outputs: Sequence[Vector], x: Vector, s: float, t: float, basis: str, schedule: Schedule) -> Vector:
    """x_t from x_s by the mean of two outputs: those at both ends, or those of another block."""
    return phi(0.5 * (outputs[0] + outputs[1]), x, s, t, basis, schedule)


@final
@dataclass(frozen=True)
class Heun(InUsersBasis, BlockSolver):
    """`heun`, in eps, x0 or a flow's velocity: order 2."""

    @property
    def evaluations(self) -> int:
        return 2

    def block(
        self, evaluate: Evaluate, x: Vector, s: float, t: float, basis: str, schedule: Schedule
    ) -> tuple[Vector, list[Vector], Vector]:
        check_mixing(str(self), basis, schedule)
        d_s = evaluate(x, s)
        y = phi(d_s, x, s, t, basis, schedule)
        d_t = evaluate(y, t)
        p, q = solve((0.0, 1.0), x_row(t, schedule), basis_row(basis, t, schedule))
        return trapezoid([d_s, d_t], x, s, t, basis, schedule), [d_s, d_t], p * y + q * d_t

    def reuse(self, outputs: Sequence[Vector], x: Vector, s: float, t: float, basis: str, schedule: Schedule) -> Vector:
        return trapezoid(outputs, x, s, t, basis, schedule)

    def __str__(self) -> str:
        return "heun"


@final
@dataclass(frozen=True)
class Edm(InUsersBasis):
    """`edm`, in eps (the paper's), x0 or a flow's velocity: Heun steps and one Euler step, 2n - 1 evaluations."""

    @property
    def evaluations(self) -> int:
        return 1  # in the last interval; no step needs times between its ends

    def intervals(self, nfe: int) -> int:
        if nfe % 2 == 0:
            raise InputError(f"edm evaluates 2n-1 times in n steps; NFE {nfe} is even, use {nfe - 1} or {nfe + 1}")
        return (nfe + 1) // 2

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        heun, x = Heun(), noise
        for s, t in pairwise(grid[:-1]):
            x, _, _ = heun.block(evaluate, x, s, t, basis, schedule)
        return phi(evaluate(x, grid[-2]), x, grid[-2], grid[-1], basis, schedule)

    def __str__(self) -> str:
        return "edm"
