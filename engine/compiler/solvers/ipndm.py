"""iPNDM (Zhang & Chen, arXiv 2204.13902, section 4.3; from PNDM, Liu et al., arXiv 2202.09778): DDIM steps by a mean.

    e = (55 e_n - 59 e_n-1 + 37 e_n-2 - 9 e_n-3) / 24          Adams-Bashforth, equation 12 of PNDM
    x_t = phi(e, x_s)                                          the DDIM step

with 1, 2, 3 outputs in the first steps. The coefficients are those of equal steps in rho = sigma / alpha; on other
grids, and after the one Euler step at the start, every order above 1 converges with order 2.

`variant=variable` takes the coefficients of the steps that there are. That is Adams-Bashforth in rho, the rhoAB
method of DEIS, and compiles as `deis:order=r,variant=rho`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ...errors import InputError
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, InUsersBasis, StepSolver, Vector
from .ddim import check_mixing, phi

# Factors of the outputs, the newest first, by the number of outputs.
COEFFICIENTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@final
@dataclass(frozen=True)
class IPndm(InUsersBasis, StepSolver):
    """`ipndm:order=1..4`, in eps, x0 or a flow's velocity. Order 1 is DDIM."""

    order: int = 4

    def __post_init__(self) -> None:
        if self.order not in COEFFICIENTS:
            raise InputError(f"ipndm has order 1, 2, 3 or 4, got {self.order}")

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        if self.order > 1:
            check_mixing(str(self), basis, schedule)
        x, outputs = noise, []
        for s, t in pairwise(grid):
            outputs = [evaluate(x, s), *outputs][: self.order]
            mean = sum((c * d for c, d in zip(COEFFICIENTS[len(outputs)], outputs, strict=True)), 0 * noise)
            x = phi(mean, x, s, t, basis, schedule)
        return x

    def __str__(self) -> str:
        return f"ipndm:order={self.order}"
