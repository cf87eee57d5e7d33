"""Analytic-DPM (Bao et al., arXiv 2201.06503): the step of DDPM or of DDIM with the variance that is optimal for it.

    x_t = alpha_t x_0 + sqrt(sigma_t^2 - v^2) eps + sqrt(v^2 + c^2 V_s) xi         theorem 1, in this notation
    c   = alpha_t - alpha_s/sigma_s sqrt(sigma_t^2 - v^2)
    v   = sigma_t sqrt(1 - e^-2h) for analytic-ddpm, 0 for analytic-ddim
    V_s = E tr Cov(x_0 | x_s) / d = (sigma_s/alpha_s)^2 (1 - E |eps|^2 / d)        the paper's Gamma is E |eps|^2 / d

V_s belongs to the network. It is estimated by forward runs (export/choice/x0_variance.py), one number a step. It stands
in the solver's string: `analytic-ddim:x0_var=0.41/0.27/...`. No noise is added in the step to the clean point.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import numpy as np

from ....errors import InputError
from ...basis import x_row
from ...schedule import Float64s, Schedule
from ..abstract import Evaluate, InUsersBasis, Solver, StepSolver, Vector, shown
from .noisy import posterior_deviation, renoise

KINDS = ("ddpm", "ddim")
MOST_STEPS = 400  # so that their variances fit into the string


class Analytic(Solver):
    """A solver that needs V_s, the variance of x_0 given x_s, for each of its steps: `x0_var`, empty until known."""

    x0_var: tuple[float, ...]

    @property
    @abstractmethod
    def lacks_variances(self) -> bool:
        """Whether they are still to be estimated."""

    @abstractmethod
    def step_starts(self, grid: Float64s) -> Float64s:
        """The times s at which V_s is needed, in the order of `x0_var`."""

    @abstractmethod
    def with_variances(self, x0_var: tuple[float, ...]) -> Analytic:
        """The same solver with them."""


def step(
    d: Vector, x: Vector, s: float, t: float, v: float, x0_var: float, xi: Vector, basis: str, schedule: Schedule
) -> Vector:
    """x_t from x_s and the output d: the step that adds noise of deviation v, with the optimal variance."""
    x_t = renoise(d, x, s, t, v, xi, basis, schedule)
    if t == schedule.clean:
        return x_t
    (alpha_s, sigma_s), (alpha_t, sigma_t) = x_row(s, schedule), x_row(t, schedule)
    c = alpha_t - alpha_s / sigma_s * math.sqrt(max(sigma_t**2 - v**2, 0.0))
    return x_t + (math.sqrt(v**2 + c**2 * x0_var) - v) * xi


def check_variances(x0_var: Sequence[float]) -> None:
    """Raises InputError for what no variances are, and for too many to be written down."""
    if not all(math.isfinite(one) and one >= 0 for one in x0_var):
        raise InputError("x0_var takes variances of at least 0, such as x0_var=0.4/0.2/0.1")
    if len(x0_var) > MOST_STEPS:
        raise InputError(f"x0_var takes at most {MOST_STEPS} variances, got {len(x0_var)}; take fewer evaluations")


def check_count(solver: str, x0_var: Sequence[float], steps: int) -> None:
    """Raises InputError unless there is a variance for each step."""
    if not x0_var:
        raise InputError(
            f"{solver} needs the network's variance of x0 at each of {steps} steps: pfdiff build estimates it, "
            "and x0_var=0.4/0.2/... gives it"
        )
    if len(x0_var) != steps:
        raise InputError(f"{solver.partition(':')[0]}: {len(x0_var)} variances x0_var for {steps} steps; give {steps}")


def listed(x0_var: Sequence[float]) -> str:
    """As in a solver's string."""
    return "/".join(shown(one) for one in x0_var)


@final
@dataclass(frozen=True)
class AnalyticStep(InUsersBasis, StepSolver, Analytic):
    """`analytic-ddpm` and `analytic-ddim`, with `x0_var` once it is known; in any basis."""

    kind: str
    x0_var: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_variances(self.x0_var)

    @property
    def lacks_variances(self) -> bool:
        return not self.x0_var

    def step_starts(self, grid: Float64s) -> Float64s:
        return np.asarray(grid[:-1])

    def with_variances(self, x0_var: tuple[float, ...]) -> AnalyticStep:
        return replace(self, x0_var=x0_var)

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        check_count(str(self), self.x0_var, len(grid) - 1)
        x = noise
        for (s, t), x0_var in zip(pairwise(grid), self.x0_var, strict=True):
            d = evaluate(x, s)
            v = posterior_deviation(s, t, schedule) if self.kind == "ddpm" else 0.0
            x = step(d, x, s, t, v, x0_var, evaluate.draw(), basis, schedule)
        return x

    def __str__(self) -> str:
        return f"analytic-{self.kind}" + (f":x0_var={listed(self.x0_var)}" if self.x0_var else "")
