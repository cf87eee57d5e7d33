"""Single-step solvers: blocks of several evaluations that stand alone, one after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

from ...errors import InputError
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, Solver, Vector
from .ddim import phi


class BlockSolver(Solver):
    """A single-step solver: each block stands alone, and its outputs can be used for another interval."""

    @abstractmethod
    def block(
        self, evaluate: Evaluate, x: Vector, s: float, t: float, basis: str, schedule: Schedule
    ) -> tuple[Vector, list[Vector], Vector]:
        """(x_t, outputs, eps): one block of `evaluations` evaluations; eps is that of the last output, for `finish`."""

    @abstractmethod
    def reuse(self, outputs: Sequence[Vector], x: Vector, s: float, t: float, basis: str, schedule: Schedule) -> Vector:
        """x_t from x_s by the outputs of another block: no evaluation."""

    def intervals(self, nfe: int) -> int:
        return blocks(nfe, self.evaluations, str(self))

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x, eps = noise, noise
        last = len(grid) - 1 - (self.evaluations > 1 and grid[-1] == schedule.clean)
        for s, t in pairwise(grid[: last + 1]):
            x, _, eps = self.block(evaluate, x, s, t, basis, schedule)
        return finish(eps, x, grid, schedule) if self.evaluations > 1 else x


def blocks(nfe: int, order: int, name: str) -> int:
    """nfe / order. Raises InputError unless whole."""
    if nfe % order:
        low, high = nfe // order * order, (nfe // order + 1) * order
        near = f"{low} or {high}" if low else f"{high}"
        raise InputError(f"{name} evaluates {order} times a block; NFE {nfe} is no multiple of {order}, use {near}")
    return nfe // order


def finish(eps: Vector, x: Vector, grid: Float64s, schedule: Schedule) -> Vector:
    """Single-step blocks end at a trained time; a step with the last eps removes the remaining noise at no cost."""
    return phi(eps, x, grid[-2], grid[-1], "eps", schedule) if grid[-1] == schedule.clean else x
