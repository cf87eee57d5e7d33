"""DPM-Solver and DPM-Solver++ (Lu et al., arXiv 2206.00927 and 2211.01095).

Both integrate x_t = P_t/P_s x_s - P_t int e^-g d(g) dg exactly in its linear part, with
    eps form (DPM-Solver)     P = alpha, Q = sigma, g = +lambda, d = eps
    x0 form  (DPM-Solver++)   P = sigma, Q = alpha, g = -lambda, d = x0
so one formula serves both: with h = g_t - g_s, x_t = P_t/P_s x_s - Q_t (e^h - 1) d_s + higher orders.
Single-step solvers evaluate p times inside an interval, at equal fractions of it in lambda. Multistep solvers reuse
outputs of earlier steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ...errors import InputError
from ..basis import convert
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, StepSolver, Vector
from .block import BlockSolver
from .ddim import phi
from .exponential import orders_left, step, varphi

FORMS = {"dpm-solver": "eps", "dpm++": "x0"}


def inner_times(s: float, t: float, order: int, schedule: Schedule) -> list[float]:
    """The `order` evaluation times of a block from s to t: s and equal fractions in lambda; integers if discrete.

    Raises InputError where alpha_s is 0: there is no finite lambda to divide.
    """
    lam_s, lam_t = float(schedule.lam(s)), float(schedule.lam(t))
    if order > 1 and not math.isfinite(lam_s):
        raise InputError(
            f"a block of order {order} cannot start at time {s:g}, where alpha is 0; pass t_start below it"
        )
    times = [float(schedule.time_from_lambda(lam_s + j / order * (lam_t - lam_s))) for j in range(1, order)]
    if schedule.discrete:
        # Rounded, then kept strictly between s and t and apart from each other.
        times = [min(max(round(u), t + order - j), s - j) for j, u in enumerate(times, 1)]
        for j in range(1, len(times)):
            times[j] = min(times[j], times[j - 1] - 1)
    return [s, *times]


def advance(outputs: Sequence[Vector], x: Vector, times: Sequence[float], u: float, order: int, form: str, schedule):
    """The state at time u from x at times[0] and the outputs so far, taken as the outputs at `times`.

    The stages and the end of a single-step block are one formula: with D = d_k - d_0 the last difference known
    and rho/r_k the length to u over the length to its time, both in lambda, it subtracts Q_u rho/r_k w D where
    w = (e^h - 1)/2 in the second-order solver and (e^h - 1)/h - 1 in the third-order one
    (arXiv 2206.00927, algorithms 1 and 2; arXiv 2211.01095, appendix A for the x0 form).
    """
    x_u = phi(outputs[0], x, times[0], u, form, schedule)
    if len(outputs) == 1:
        return x_u
    h = step(times[0], u, form, schedule)
    weight = math.expm1(h) / 2 if order == 2 else math.expm1(h) / h - 1
    ratio = h / step(times[0], times[len(outputs) - 1], form, schedule)
    q_u = float(schedule.sigma(u) if form == "eps" else schedule.alpha(u))
    return x_u - (q_u * ratio * weight) * (outputs[-1] - outputs[0])


@final
@dataclass(frozen=True)
class SingleStep(BlockSolver):
    """`dpm-solver:order=1|2|3` in eps, `dpm++:1s|2s|3s` in x0. Order 1 is DDIM."""

    family: str
    order: int

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InputError(f"{self.family} has order 1, 2 or 3, got {self.order}")

    @property
    def parameterisation(self) -> str:
        return FORMS[self.family]

    @property
    def evaluations(self) -> int:
        return self.order

    def block(
        self, evaluate: Evaluate, x: Vector, s: float, t: float, basis: str, schedule: Schedule
    ) -> tuple[Vector, list[Vector], Vector]:
        times = inner_times(s, t, self.order, schedule)
        outputs: list[Vector] = []
        y = x
        for j, u in enumerate(times):
            y = advance(outputs, x, times, u, self.order, basis, schedule) if j else x
            outputs.append(evaluate(y, u))
        p, q = convert("eps", basis, times[-1], schedule)
        return advance(outputs, x, times, t, self.order, basis, schedule), outputs, p * y + q * outputs[-1]

    def reuse(self, outputs: Sequence[Vector], x: Vector, s: float, t: float, basis: str, schedule: Schedule) -> Vector:
        # At the same fractions of this interval.
        times = inner_times(s, t, self.order, schedule)
        return advance(outputs, x, times, t, self.order, basis, schedule)

    def __str__(self) -> str:
        return f"dpm-solver:order={self.order}" if self.family == "dpm-solver" else f"dpm++:{self.order}s"


def extrapolate(outputs: Sequence[Vector], x: Vector, times: Sequence[float], t: float, form: str, schedule: Schedule):
    """x_t from x at times[0] by 1 to 3 outputs, the newest first (arXiv 2211.01095, algorithm 2, and its code).

    The third order follows the authors' code, which takes the second difference with half the factor that a Taylor
    expansion gives it, so that it converges with order 2; `ab:order=3` has the whole factor.
    """
    x_t = phi(outputs[0], x, times[0], t, form, schedule)
    if len(outputs) == 1:
        return x_t
    h = step(times[0], t, form, schedule)
    q_t = float(schedule.sigma(t) if form == "eps" else schedule.alpha(t))
    r_0 = step(times[1], times[0], form, schedule) / h
    D_10 = (1 / r_0) * (outputs[0] - outputs[1])
    if len(outputs) == 2:
        return x_t - (q_t * math.expm1(h) / 2) * D_10
    r_1 = step(times[2], times[1], form, schedule) / h
    D_11 = (1 / r_1) * (outputs[1] - outputs[2])
    D_2 = (1 / (r_0 + r_1)) * (D_10 - D_11)
    D_1 = D_10 + r_0 * D_2
    return x_t - (q_t * h) * (varphi(2, h) * D_1 + varphi(3, h) * D_2)


@final
@dataclass(frozen=True)
class MultiStep(StepSolver):
    """`dpm++:2m|3m` in x0 and `dpm-solver:2m|3m` in eps: one evaluation a step, differences with earlier outputs.

    The first steps have the orders 1, 2, ...; before a clean point, where lambda is infinite, the last have ..., 2, 1,
    as in the authors' code for few steps.
    """

    family: str
    order: int

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise InputError(f"{self.family} has multistep variants 2m and 3m, got {self.order}m")

    @property
    def parameterisation(self) -> str:
        return FORMS[self.family]

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x, outputs, times = noise, [], []
        for s, t in pairwise(grid):
            outputs, times = [evaluate(x, s), *outputs][: self.order], [float(s), *times][: self.order]
            order = min(len(outputs), orders_left(t, grid, schedule))
            x = extrapolate(outputs[:order], x, times, t, basis, schedule)
        return x

    def __str__(self) -> str:
        return f"{self.family}:{self.order}m"
