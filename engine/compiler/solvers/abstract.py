"""What a solver is: options in a frozen dataclass, and a function from noise to sample.

A solver never sees tensors. It is called once per compilation with symbolic vectors (trace.py), which support `+`, `-`
and `*` by a number. `evaluate` gives the network's output as such a vector, `evaluate.draw()` fresh noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from ...errors import InputError
from ..schedule import Float64s, Schedule

# A state or an output of the network. It is symbolic while tracing, so it supports arithmetic only.
Vector = Any


class Evaluate(Protocol):
    """What a solver asks of the world: answers of the network and, if it is stochastic, noise."""

    def __call__(self, y: Vector, t: float, /) -> Vector:
        """The network's output at state y and time t, in the solver's basis."""
        ...

    def draw(self) -> Vector:
        """Standard normal noise, independent of all else; at most once after each evaluation."""
        ...


class Solver(ABC):
    """`intervals` is the number of grid intervals for N evaluations; `__call__` walks them."""

    @property
    @abstractmethod
    def parameterisation(self) -> str | None:
        """The basis of the paper's formula (eps or x0); None where the formula holds in the user's basis."""

    @property
    def default_basis(self) -> str | None:
        """What is stored where the caller names no basis; None for that of the schedule."""
        return None

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations in one grid interval; integer grid times are at least this far apart."""

    @abstractmethod
    def intervals(self, nfe: int) -> int:
        """Number of grid intervals for `nfe` evaluations. Raises InputError when nfe does not fit."""

    @abstractmethod
    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        """The state at the grid's last point, from `noise`, the state at its first.

        evaluate: the network's outputs, in `basis`, and noise.
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


def shown(value: float) -> str:
    """A number in a solver's string: short, and reads back exactly."""
    return short if float(short := f"{value:g}") == value else repr(value)


def check_fraction(solver: str, option: str, value: float) -> None:
    """Raises InputError unless the solver's option is between 0 and 1."""
    if not 0 <= value <= 1:
        raise InputError(f"{solver} takes {option} between 0 and 1, got {value:g}")


class InUsersBasis(Solver):
    """A solver whose formula holds in the user's basis; stands before what says how it walks the grid."""

    @property
    def parameterisation(self) -> None:
        return None


class InX0(Solver):
    """A solver whose formula combines x0 outputs; stands before what says how it walks the grid."""

    @property
    def parameterisation(self) -> str:
        return "x0"
