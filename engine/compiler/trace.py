"""A solver is run once on symbols, and its run becomes a dense table.

Every ODE solver here is linear in (noise, d_0, ..., d_N-1), where d_n is the network's n-th output. So a vector is its
coefficients, float64 [N+1]. Row n of the table is the state y_n at which d_n is evaluated; the sample is the last row.
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
    """A linear combination of (noise, d_0, ..., d_N-1); the only thing a solver ever holds."""

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


def trace(solver: Solver, nfe: int, grid: Float64s, schedule: Schedule, basis: str) -> tuple[Float64s, Float64s]:
    """(times [N], table [N+1, N+1]) of a solver whose outputs d_n are in `basis`.

    Raises InputError when the solver evaluates another number of times than `nfe`.
    """
    unit = np.eye(nfe + 1)
    kind = solver.parameterisation or basis
    times: list[float] = []
    rows: list[Float64s] = []

    def evaluate(y: Combination, t: float) -> Combination:
        if len(times) == nfe:
            raise InputError(f"{solver} asks for more than {nfe} evaluations on {len(grid)} grid points")
        times.append(float(t))
        rows.append(y.coefficients)
        d = Combination(unit[len(times)])
        if kind == basis:
            return d
        p, q = convert(velocity(kind, schedule), velocity(basis, schedule), float(t), schedule)
        return p * y + q * d

    noise = Combination(unit[0] * schedule.prior_scale(float(grid[0])))
    sample = solver(evaluate, noise, grid, schedule, kind)
    if len(times) != nfe:
        raise InputError(f"{solver} evaluates {len(times)} times on {len(grid)} grid points, not {nfe}")
    table = np.stack([*rows, sample.coefficients])
    if not np.all(np.isfinite(table)):
        raise InputError(f"{solver} on this grid has coefficients that are not finite; start later (t_start)")
    return np.array(times), table
