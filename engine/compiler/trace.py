"""A solver is run once on symbols, and its run becomes a dense table.

Every solver here is linear in (noise, xi_1, ..., xi_K, d_0, ..., d_N-1), where d_n is the network's n-th output and the
xi are the noises that a stochastic solver draws on the way. So a vector is its coefficients, float64 [1+K+N]. Row n of
the table is the state y_n at which d_n is evaluated; the sample is the last row.
"""

from __future__ import annotations

from typing import final

import numpy as np

from ..errors import InputError
from .basis import convert, velocity
from .schedule import Float64s, Schedule
from .solvers.abstract import Solver


@final
class Combination:
    """A linear combination of noise, draws and outputs; the only thing a solver ever holds."""

    __slots__ = ("coefficients",)

    def __init__(self, coefficients: Float64s) -> None:
        self.coefficients = coefficients

    def __add__(self, other: Combination) -> Combination:
        return Combination(self.coefficients + other.coefficients)

    def __sub__(self, other: Combination) -> Combination:
        return Combination(self.coefficients - other.coefficients)

    def __mul__(self, factor: float) -> Combination:
        return Combination(self.coefficients * float(factor))

    __rmul__ = __mul__


@final
class Tracer:
    """`evaluate` of a run on symbols: it records rows and times, and hands out units of 1 + N draws + N outputs."""

    def __init__(self, solver: Solver, nfe: int, grid: Float64s, schedule: Schedule, basis: str) -> None:
        self.solver, self.nfe, self.points, self.schedule, self.basis = solver, nfe, len(grid), schedule, basis
        self.kind = solver.parameterisation or basis
        self.unit = np.eye(1 + 2 * nfe)
        self.times: list[float] = []
        self.rows: list[Float64s] = []
        self.drawn: list[int] = []  # the evaluations after which noise was drawn

    def __call__(self, y: Combination, t: float) -> Combination:
        if len(self.times) == self.nfe:
            raise InputError(f"{self.solver} asks for more than {self.nfe} evaluations on {self.points} grid points")
        d = Combination(self.unit[1 + self.nfe + len(self.times)])
        self.times.append(float(t))
        self.rows.append(y.coefficients)
        if self.kind == self.basis:
            return d
        given, stored = velocity(self.kind, self.schedule), velocity(self.basis, self.schedule)
        p, q = convert(given, stored, float(t), self.schedule)
        return p * y + q * d

    def draw(self) -> Combination:
        after = len(self.times) - 1
        if after < 0 or after in self.drawn:
            raise InputError(f"{self.solver} draws noise twice after {after + 1} evaluations; the table holds one draw")
        self.drawn.append(after)
        return Combination(self.unit[1 + after])


def trace(
    solver: Solver, nfe: int, grid: Float64s, schedule: Schedule, basis: str
) -> tuple[Float64s, Float64s, tuple[int, ...]]:
    """(times [N], table [N+1, 1+K+N], draws [K]) of a solver whose outputs d_n are in `basis`.

    draws: the evaluations, counted from 0, after which xi_1 ... xi_K are drawn; a draw with no effect has no column.
    Raises InputError when the solver evaluates another number of times than `nfe`.
    """
    evaluate = Tracer(solver, nfe, grid, schedule, basis)
    noise = Combination(evaluate.unit[0] * schedule.prior_scale(float(grid[0])))
    sample = solver(evaluate, noise, grid, schedule, evaluate.kind)
    if len(evaluate.times) != nfe:
        raise InputError(f"{solver} evaluates {len(evaluate.times)} times on {len(grid)} grid points, not {nfe}")
    table = np.stack([*evaluate.rows, sample.coefficients])
    if not np.all(np.isfinite(table)):
        raise InputError(f"{solver} on this grid has coefficients that are not finite; start later (t_start)")
    draws = tuple(n for n in evaluate.drawn if table[:, 1 + n].any())
    columns = [0, *(1 + n for n in draws), *range(1 + nfe, 1 + 2 * nfe)]
    return np.array(evaluate.times), np.ascontiguousarray(table[:, columns]), draws
