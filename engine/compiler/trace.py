"""A solver is run once on symbols; what it did becomes a dense table, and the table a few in-place updates.

Every ODE solver here is linear in (noise, d_0, ..., d_N-1), where d_n is the network's n-th answer. So a vector is its
coefficients, float64 [N+1], and the trace is the table whose row n is the state y_n at which d_n is asked, with the
sample in the last row. `lower` finds the fewest buffers that carry it:

before d_n arrives, what the past must hand on is the part of rows y_n, y_n+1, ..., sample that is known by then (their
columns noise ... d_n-1). The rank of that block is a lower bound on the number of buffers, and a basis made of y_n
and of partial rows reaches it. DDIM has rank 1; PFDiff 2, anchor and springboard, and no answer is ever stored: when
it arrives, every row that will use it is at hand.
"""

from __future__ import annotations

from typing import final

import numpy as np

from ..errors import InputError
from .basis import convert
from .schedule import Array, Schedule
from .solvers.abstract import Solver

# Two rows of unit length closer than this are one: rounding leaves 1e-15, the densest grids still 1e-4.
DEPENDENT = 1e-11


@final
class Combination:
    """A linear combination of (noise, d_0, ..., d_N-1); the only thing a solver ever holds."""

    __slots__ = ("coefficients",)

    def __init__(self, coefficients: Array) -> None:
        self.coefficients = coefficients

    def __add__(self, other: Combination) -> Combination:
        return Combination(self.coefficients + other.coefficients)

    def __sub__(self, other: Combination) -> Combination:
        return Combination(self.coefficients - other.coefficients)

    def __mul__(self, factor: float) -> Combination:
        return Combination(self.coefficients * float(factor))

    __rmul__ = __mul__


def trace(solver: Solver, nfe: int, grid: Array, schedule: Schedule, basis: str) -> tuple[Array, Array]:
    """(times [N], table [N+1, N+1]) of a solver whose stored answers are in `basis`.

    Raises InputError when the solver evaluates another number of times than `nfe`.
    """
    unit = np.eye(nfe + 1)
    kind = solver.parameterisation or basis
    times: list[float] = []
    rows: list[Array] = []

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


def velocity(basis: str, schedule: Schedule) -> str:
    """The prediction that a basis name means on this schedule."""
    return schedule.velocity if basis == "v" else basis


def rank_bound(table: Array) -> int:
    """Largest rank of any block (future rows x what is known so far): no fewer buffers can do."""
    return max(_rank(known(table[n:], n + 1)) for n in range(len(table)))


def known(rows: Array, columns: int) -> Array:
    """The first columns of rows; a row of which rounding alone is left there counts as zero."""
    cut = rows[:, :columns].copy()
    cut[np.linalg.norm(cut, axis=1) <= DEPENDENT * np.linalg.norm(rows, axis=1)] = 0
    return cut


def _rank(block: Array) -> int:
    norms = np.linalg.norm(block, axis=1)
    singular = np.linalg.svd(block / np.where(norms > 0, norms, 1)[:, None], compute_uv=False)
    return int(np.sum(singular > DEPENDENT * singular[0]))


def lower(table: Array) -> tuple[Array, Array, Array]:
    """(init [B], W [N, B, B], w [N, B]): s = init * noise, then s <- W_n s + w_n d_n; y_n and the sample are s_0.

    Walks backwards: the vectors needed before d_n are y_n and those needed after it, cut to what is known; of
    these a largest independent set is kept, y_n first. The forward matrices then follow by least squares, exactly.
    """
    nfe = len(table) - 1
    bases = [table[nfe:]]
    for n in range(nfe - 1, -1, -1):
        bases.append(_independent(np.vstack([table[n, : n + 1], known(bases[-1], n + 1)])))
    bases.reverse()

    buffers = max(len(b) for b in bases)
    init, W, w = np.zeros(buffers), np.zeros((nfe, buffers, buffers)), np.zeros((nfe, buffers))
    init[: len(bases[0])] = bases[0][:, 0]
    for n in range(nfe):
        now, after = bases[n], bases[n + 1]
        scale = np.linalg.norm(now, axis=1)
        mix = np.linalg.lstsq((now / scale[:, None]).T, after[:, : n + 1].T, rcond=None)[0].T
        # What rounding left of an exact zero is dropped, so that kernels need not read that buffer.
        mix[np.abs(mix) <= DEPENDENT * np.linalg.norm(after, axis=1)[:, None]] = 0
        W[n, : len(after), : len(now)] = mix / scale
        w[n, : len(after)] = after[:, n + 1]
    return init, W, w


def _independent(candidates: Array) -> Array:
    """The first row and a largest set of others independent of it and of each other, in their order."""
    norms = np.linalg.norm(candidates, axis=1)
    residual = candidates / np.where(norms > 0, norms, 1)[:, None]
    chosen = [0]
    while True:
        direction = residual[chosen[-1]] / np.linalg.norm(residual[chosen[-1]])
        residual = residual - np.outer(residual @ direction, direction)
        length = np.linalg.norm(residual, axis=1)
        length[chosen] = 0
        if length.max() <= DEPENDENT:
            return candidates[sorted(chosen)]
        # The most independent, the earlier of near equals: neighbours in time have like scales.
        chosen.append(int(np.argmax(length >= 0.5 * length.max())))
