"""What a solver is: options in a frozen dataclass, and a function from noise to sample.

A solver never sees tensors. It is called once per compilation with symbolic vectors that know `+`, `-` and `*` by
a number (trace.py), and asks `evaluate` for the network's answer, another such vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from ..schedule import Float64s, Schedule

# A state or an answer of the network. Symbolic while tracing, so nothing but arithmetic may be asked of it.
Vector = Any
Evaluate = Callable[[Vector, float], Vector]


class Solver(ABC):
    """`intervals` says how many grid intervals N evaluations walk, `__call__` walks them."""

    @property
    @abstractmethod
    def parameterisation(self) -> str | None:
        """The basis in which the paper writes it (eps or x0); None where the user's choice serves."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations in one grid interval; integer grid times keep that distance."""

    @abstractmethod
    def intervals(self, nfe: int) -> int:
        """Number of grid intervals for `nfe` evaluations. Raises InputError when nfe does not fit."""

    @abstractmethod
    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        """The state at the grid's last point, from `noise`, the state at its first.

        evaluate(x, t): the network's answer at state x and time t, in `basis`.
        """

    @abstractmethod
    def __str__(self) -> str:
        """The string that parses to this solver."""


class StepSolver(Solver):
    """One evaluation in every grid interval: N intervals for N evaluations."""

    @property
    def evaluations(self) -> int:
        return 1

    def intervals(self, nfe: int) -> int:
        return nfe
