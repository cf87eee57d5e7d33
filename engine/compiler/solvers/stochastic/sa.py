"""SA-Solver (Xue et al., arXiv 2309.05019): stochastic Adams methods, a predictor and a corrector of any tau.

From s to t with h = lambda_t - lambda_s and x0 outputs d_j at times u_j (equations 14 and 17, algorithm 1):

    x_t = sigma_t/sigma_s e^(-tau^2 h) x_s + sum_j b_j d_j + sigma_t sqrt(1 - e^(-2 tau^2 h)) xi
    b_j = (1 + tau^2) alpha_t int_-h^0 e^((1 + tau^2) u) l_j(lambda_t + u) du        l_j: Lagrange on the lambda_{u_j}

tau 0 is the probability flow's ODE, tau 1 the reverse SDE. The corrector's outputs include the one at t, evaluated at
the predicted point; it has the predictor's xi, and moves x_t before the next prediction at no cost. Outputs of order 2
have the authors' term of h^3 (their code, for few steps). The first steps have orders 1, 2, ...; before a clean point
the last have ..., 2, 1, and the last is not corrected.

An order is the number of outputs in the sum. The strong error is O(max tau h + h^order), theorems 5.1 and 5.2. The
marginals of normal data converge with order 2 from order 2 on, for any tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from ....errors import InputError
from ...basis import x_row
from ...schedule import Float64s, Schedule
from ..abstract import Evaluate, InX0, StepSolver, Vector, shown
from ..exponential import gauss, orders_left
from .noisy import length, renoise


def update(
    d: Sequence[Vector],
    x: Vector,
    s: float,
    times: Sequence[float],
    t: float,
    tau: float,
    xi: Vector,
    schedule: Schedule,
) -> Vector:
    """x_t from x_s by the outputs d at `times`; a corrector if the first of these is t."""
    h, (alpha_t, sigma_t) = length(s, t, schedule), x_row(t, schedule)
    v = sigma_t * math.sqrt(-math.expm1(-2 * tau**2 * h)) if tau and sigma_t else 0.0
    x_t = renoise(d[0], x, s, t, v, xi, "x0", schedule)
    if len(d) == 1:
        return x_t
    b = _weights(h, np.array([length(t, u, schedule) for u in times]), tau)
    if len(d) == 2:
        # The authors' term, of which the sum stays.
        k = 1 + tau**2
        linear = (h * k + math.expm1(-k * h)) / k**2
        gap = length(times[1], times[0], schedule)
        extra = k * ((h / 2 - linear / h) if times[0] == t else (h**2 / 2 - linear) / gap)
        b = b + np.array([extra, -extra])
    for b_j, d_j in zip(b[1:], d[1:], strict=True):
        x_t = x_t + (alpha_t * b_j) * (d_j - d[0])
    return x_t


def _weights(h: float, nodes: Float64s, tau: float) -> Float64s:
    """b_j / alpha_t for outputs at lambda_t + nodes, by quadrature: the integrand is a polynomial times e^u."""
    r, weight = gauss(40)
    u = h * (r - 1)
    factor = (1 + tau**2) * h * weight * np.exp((1 + tau**2) * u)
    others = [np.delete(nodes, j) for j in range(len(nodes))]
    lagrange = [np.prod((u[:, None] - rest) / (node - rest), axis=1) for node, rest in zip(nodes, others, strict=True)]
    return np.array([np.sum(factor * l_j) for l_j in lagrange])


@final
@dataclass(frozen=True)
class SASolver(InX0, StepSolver):
    """`sa[:predictor=1..4,corrector=0..4,tau=...,low=...,high=...]`; corrector 0 is none.

    tau holds at times from `low` to `high`, in the schedule's units, and is 0 outside.
    """

    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not (1 <= self.predictor <= 4 and 0 <= self.corrector <= 4):
            raise InputError(f"sa has predictors 1 to 4 and correctors 0 to 4, got {self.predictor}, {self.corrector}")
        if not (self.tau >= 0 and math.isfinite(self.tau) and self.low <= self.high):
            raise InputError(f"sa takes a tau of at least 0 and low <= high, got {self.tau}, {self.low}, {self.high}")

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x = before = xi = noise
        outputs: list[Vector] = []
        times: list[float] = []
        order = 0
        for i, (s, t) in enumerate(pairwise(grid)):
            d = evaluate(x, s)
            # Correct x, which was predicted from `before`; not from alpha = 0, where lambda is infinite.
            if order and not math.isfinite(schedule.lam(times[0])):
                outputs, times = [], []
            elif order and self.corrector:
                count = min(self.corrector, i + 1, orders_left(s, grid, schedule) + 1, len(outputs) + 1)
                last, tau = times[0], self._tau(times[0])
                x = update([d, *outputs][:count], before, last, [float(s), *times][:count], s, tau, xi, schedule)
            keep = max(self.predictor, self.corrector - 1)
            outputs, times = [d, *outputs][:keep], [float(s), *times][:keep]
            # Predict.
            order = min(self.predictor, len(outputs), orders_left(t, grid, schedule))
            before, xi = x, evaluate.draw()
            x = update(outputs[:order], x, s, times[:order], t, self._tau(s), xi, schedule)
        return x

    def _tau(self, t: float) -> float:
        return self.tau if self.low <= t <= self.high else 0.0

    def __str__(self) -> str:
        window = f",low={shown(self.low)}" * (self.low != 0) + f",high={shown(self.high)}" * (self.high != math.inf)
        return f"sa:predictor={self.predictor},corrector={self.corrector},tau={shown(self.tau)}{window}"
