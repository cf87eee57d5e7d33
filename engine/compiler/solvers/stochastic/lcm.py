"""Multistep consistency sampling of latent consistency models (Luo et al., arXiv 2310.04378, algorithm 3).

    f   = c_skip x_s + c_out x_0                          the consistency function, equation 9
    x_t = alpha_t f + sigma_t xi                          all noise is new; at the clean point f itself

On discrete schedules c_skip = 1/4 / (u^2 + 1/4) and c_out = u / sqrt(u^2 + 1/4), u = scaling t, as in diffusers
(`timestep_scaling` 10). On continuous schedules f is x_0, as in distilled flow networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ....errors import InputError
from ...basis import x_row
from ...schedule import Float64s, Schedule
from ..abstract import Evaluate, InX0, StepSolver, Vector, shown

SIGMA_DATA = 0.5


@final
@dataclass(frozen=True)
class Lcm(InX0, StepSolver):
    """`lcm[:scaling=10]`, for networks distilled to it."""

    scaling: float = 10.0

    def __post_init__(self) -> None:
        if not (self.scaling > 0 and math.isfinite(self.scaling)):
            raise InputError(f"lcm takes a scaling above 0, got {self.scaling:g}")

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x = noise
        for s, t in pairwise(grid):
            c_skip, c_out = self._boundary(s) if schedule.discrete else (0.0, 1.0)
            f = c_out * evaluate(x, s) + c_skip * x
            alpha_t, sigma_t = x_row(t, schedule)
            x = alpha_t * f + sigma_t * evaluate.draw()
        return x

    def _boundary(self, t: float) -> tuple[float, float]:
        u = self.scaling * t
        total = u**2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, u / math.sqrt(total)

    def __str__(self) -> str:
        return "lcm" if self.scaling == 10 else f"lcm:scaling={shown(self.scaling)}"
