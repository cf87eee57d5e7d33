"""DDPM's ancestral sampling (Ho et al., arXiv 2006.11239, algorithm 2), with steps of any length.

    x_t = mu(x_s, x_0) + v xi,      mu the mean of q(x_t | x_s, x_0), equation 7
    v^2 = sigma_t^2 (1 - e^-2h)                              small, the posterior's own, best for one data point
    v^2 = sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2        large, the forward step's beta, best for normal data

Section 3.2 has both; small is `ddim:eta=1`. No noise is added in the step to the clean point (algorithm 2, line 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ....errors import InputError
from ...basis import x_row
from ...schedule import Float64s, Schedule
from ..abstract import Evaluate, InUsersBasis, StepSolver, Vector
from .noisy import posterior_deviation, renoise

VARIANCES = ("small", "large")


@final
@dataclass(frozen=True)
class Ddpm(InUsersBasis, StepSolver):
    """`ddpm[:variance=small|large]`, in any basis."""

    variance: str = "small"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise InputError(f"ddpm has no variance {self.variance!r}; known: {', '.join(VARIANCES)}")

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x = noise
        for s, t in pairwise(grid):
            d, xi = evaluate(x, s), evaluate.draw()
            v = posterior_deviation(s, t, schedule)
            x = renoise(d, x, s, t, v, xi, basis, schedule)
            if self.variance == "large" and t != schedule.clean:
                x = x + (forward_deviation(s, t, schedule) - v) * xi
        return x

    def __str__(self) -> str:
        return "ddpm" if self.variance == "small" else f"ddpm:variance={self.variance}"


def forward_deviation(s: float, t: float, schedule: Schedule) -> float:
    """Standard deviation of q(x_s | x_t): the noise that the forward process adds from t to the later s."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = x_row(s, schedule), x_row(t, schedule)
    return math.sqrt(max(sigma_s**2 - (alpha_s / alpha_t * sigma_t) ** 2, 0.0))
