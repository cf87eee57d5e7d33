"""Strategic stochastic sampling of trajectory consistency models (Zheng et al., arXiv 2402.19159, algorithm 4).

    u   = (1 - gamma) t                                                 whole on discrete schedules, rounded down
    x_u = phi(d, x_s, s -> u)                                           the DDIM step, beyond t
    x_t = alpha_t/alpha_u x_u + sqrt(sigma_t^2 - (alpha_t/alpha_u sigma_u)^2) xi       and noise again, back to t

gamma 0 is DDIM; gamma 1 goes to the data in every step, as consistency models do. The last step ends at t itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ...schedule import Float64s, Schedule
from ..abstract import Evaluate, InUsersBasis, StepSolver, Vector, check_fraction, shown
from ..ddim import phi
from .ddpm import forward_deviation


@final
@dataclass(frozen=True)
class Tcd(InUsersBasis, StepSolver):
    """`tcd[:gamma=0..1]`, in any basis, for networks distilled to it; diffusers calls gamma eta."""

    gamma: float = 0.3

    def __post_init__(self) -> None:
        check_fraction("tcd", "a gamma", self.gamma)

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x = noise
        for s, t in pairwise(grid):
            d = evaluate(x, s)
            if t == grid[-1]:
                return phi(d, x, s, t, basis, schedule)
            u = (1 - self.gamma) * t
            u = float(math.floor(u)) if schedule.discrete else u
            x_u = phi(d, x, s, u, basis, schedule)
            xi = evaluate.draw()
            x = float(schedule.alpha(t) / schedule.alpha(u)) * x_u + forward_deviation(t, u, schedule) * xi
        return x

    def __str__(self) -> str:
        return f"tcd:gamma={shown(self.gamma)}"
