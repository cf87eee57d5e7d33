"""DPM-Solver++ for the diffusion SDE (Lu et al., arXiv 2211.01095, section 5 and appendix D; k-diffusion).

With h = lambda_t - lambda_s, the x0 form of the SDE is integrated exactly but for x0,

    x_t = sigma_t/sigma_s e^-h x_s + alpha_t (1 - e^-2h) D_0 + c_1 D_1 + c_2 D_2 + sigma_t sqrt(1 - e^-2h) xi

where D_0 is the newest x0 and D_1, D_2 its divided differences in lambda. The first two terms and xi are the step of
`ddim:eta=1` (noisy.py).

`2m-sde`: c_1 = alpha_t (1 - e^-2h) / 2. `3m-sde`, from its third step on, as in k-diffusion, of a parabola: c_1 is
alpha_t (1 - (1 - e^-2h) / 2h) and c_2 half of alpha_t (1 - 1/h + (1 - e^-2h) / 2h^2), as in the deterministic 3m.
`3m-sde-diffusers`: diffusers' sde-dpmsolver++ of order 3, which takes alpha_t away from that c_2, and is of order 1.

`sde` (k-diffusion's dpmpp_sde, r = 1/2): the step with the x0 at the middle of the interval, which a step of the same
kind has reached; the noises of both come from one Brownian motion in sigma/alpha. Between neighbouring integer times
there is no middle: there the step takes the mean of the x0 at both ends, which is k-diffusion's r = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ....errors import InputError
from ...schedule import Float64s, Schedule
from ..abstract import Evaluate, InX0, StepSolver, Vector
from ..dpm_solver import inner_times
from ..exponential import orders_left
from .noisy import length, posterior_deviation, renoise


def correction(outputs: list[Vector], times: list[float], t: float, shift: float, schedule: Schedule) -> Vector:
    """c_1 D_1 + c_2 D_2 of the step from times[0] to t by 2 or 3 outputs, the newest first."""
    h, alpha_t = length(times[0], t, schedule), float(schedule.alpha(t))
    r_0 = length(times[1], times[0], schedule) / h
    D_10 = (1 / r_0) * (outputs[0] - outputs[1])
    if len(outputs) == 2:
        return (-alpha_t * math.expm1(-2 * h) / 2) * D_10
    r_1 = length(times[2], times[1], schedule) / h
    D_11 = (1 / r_1) * (outputs[1] - outputs[2])
    D_2 = (1 / (r_0 + r_1)) * (D_10 - D_11)
    D_1 = D_10 + r_0 * D_2
    first = 1 + math.expm1(-2 * h) / (2 * h)  # the parabola's integrals: of u, then of u^2
    second = 1 - first / h
    return (alpha_t * first) * D_1 + (alpha_t * (second / 2 - shift)) * D_2


@final
@dataclass(frozen=True)
class MultiStepSde(InX0, StepSolver):
    """`dpm++:2m-sde|3m-sde|3m-sde-diffusers`: one evaluation and one draw a step.

    Orders rise at the start and fall at a clean end. shift: what diffusers takes from c_2, in units of alpha_t.
    """

    order: int
    shift: float = 0.0

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x, outputs, times = noise, [], []
        for s, t in pairwise(grid):
            outputs, times = [evaluate(x, s), *outputs][: self.order], [float(s), *times][: self.order]
            order = min(len(outputs), orders_left(t, grid, schedule))
            v = posterior_deviation(s, t, schedule)
            x = renoise(outputs[0], x, s, t, v, evaluate.draw(), basis, schedule)
            if order > 1:
                x = x + correction(outputs[:order], times, t, self.shift, schedule)
        return x

    def __str__(self) -> str:
        return f"dpm++:{self.order}m-sde" + ("-diffusers" if self.shift else "")


@final
@dataclass(frozen=True)
class SingleStepSde(InX0):
    """`dpm++:sde`: two evaluations and two draws a step, the last step one evaluation: 2n - 1 in n steps."""

    @property
    def evaluations(self) -> int:
        return 1  # in the last interval

    def intervals(self, nfe: int) -> int:
        if nfe % 2 == 0:
            raise InputError(
                f"dpm++:sde evaluates 2n-1 times in n steps; NFE {nfe} is even, use {nfe - 1} or {nfe + 1}"
            )
        return (nfe + 1) // 2

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x = noise
        for s, t in pairwise(grid[:-1]):
            has_middle = not schedule.discrete or s - t >= 2
            _, m = inner_times(s, t, 2, schedule) if has_middle else (s, t)
            d_s, xi_m = evaluate(x, s), evaluate.draw()
            x_m = renoise(d_s, x, s, m, posterior_deviation(s, m, schedule), xi_m, basis, schedule)
            d_m, xi_t = evaluate(x_m, m), evaluate.draw()
            d_m = d_m if has_middle else 0.5 * (d_s + d_m)
            # One Brownian motion over both intervals: its way to m is a part of its way to t.
            rho = [float(schedule.sigma(u) / schedule.alpha(u)) for u in (s, m, t)]
            part = (rho[0] - rho[1]) / (rho[0] - rho[2])
            xi = math.sqrt(part) * xi_m + math.sqrt(1 - part) * xi_t
            x = renoise(d_m, x, s, t, posterior_deviation(s, t, schedule), xi, basis, schedule)
        s, t = float(grid[-2]), float(grid[-1])
        d = evaluate(x, s)
        return renoise(d, x, s, t, posterior_deviation(s, t, schedule), evaluate.draw(), basis, schedule)

    def __str__(self) -> str:
        return "dpm++:sde"
