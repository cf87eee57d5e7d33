"""Multistep consistency sampling (Song et al., arXiv 2303.01469, algorithm 1).

    x_t = alpha_t x_0 + sqrt(sigma_t^2 - epsilon^2) xi         epsilon: sigma at the schedule's first time

x_0 is the consistency function of x_s. After the last evaluation nothing is added. With alpha 1 and prediction
`consistency` this is the paper's sampler; epsilon is 0.002 there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ...basis import x_row
from ...schedule import Float64s, Schedule
from ..abstract import Evaluate, InX0, StepSolver, Vector


@final
@dataclass(frozen=True)
class Consistency(InX0, StepSolver):
    """`consistency`, for networks that give the data at once."""

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x, least = noise, float(schedule.sigma(schedule.first))
        for s, t in pairwise(grid):
            x_0 = evaluate(x, s)
            alpha_t, sigma_t = x_row(t, schedule)
            x = alpha_t * x_0 + math.sqrt(max(sigma_t**2 - least**2, 0.0)) * evaluate.draw()
        return x

    def __str__(self) -> str:
        return "consistency"
