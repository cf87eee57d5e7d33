"""UniPC (Zhao et al., arXiv 2302.04867): a predictor and a corrector of one form, one evaluation a step.

In the symbols of dpm_solver.py, from s by the outputs d_0 at s and d_m at other times u_m (equations 3, 8 and 9):

    x_t = P_t/P_s x_s - Q_t (e^h - 1) d_0 - Q_t B(h) sum_m a_m/r_m (d_m - d_0)        r_m = (g_{u_m} - g_s) / h
    sum_m a_m r_m^(k-1) = k! h phi_{k+1}(h) / B(h)    k = 1 ... number of m

UniP-p takes p - 1 outputs from before s. UniC-p also takes the output at t, evaluated at the predicted point. It moves
x_t before the next prediction, so it costs no evaluation. B(h) is h (bh1) or e^h - 1 (bh2). It cancels from the
equation, and matters only where the authors put a_1 = 1/2 instead of solving for a single unknown: in UniP-2 and
UniC-1, hence never from order 3 on once the first steps are done.

The first steps have orders 1, 2, ...; before a clean point the last have ..., 2, 1, and the last is not corrected
(the authors' code). From alpha = 0, where lambda is infinite, the first step is not corrected, nor its output used by
later ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from ...errors import InputError
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, StepSolver, Vector
from .ddim import phi
from .exponential import orders_left, step, varphi

FORMS = ("eps", "x0")
VARIANTS = ("bh1", "bh2")


def update(
    d: Sequence[Vector], x: Vector, times: Sequence[float], t: float, variant: str, form: str, schedule: Schedule
) -> Vector:
    """x_t from x at times[0] by the outputs at `times`: a predictor, or a corrector if the last of these is t."""
    x_t = phi(d[0], x, times[0], t, form, schedule)
    if len(d) == 1:
        return x_t
    h = step(times[0], t, form, schedule)
    B = h if variant == "bh1" else math.expm1(h)
    r = np.array([step(times[0], u, form, schedule) / h for u in times[1:]])
    k = np.arange(1, len(r) + 1)
    right = np.array([math.factorial(i) * h * varphi(i + 1, h) / B for i in k.tolist()])
    a = np.linalg.solve(r ** (k[:, None] - 1), right) if len(r) > 1 else np.array([0.5])
    q_t = float(schedule.sigma(t) if form == "eps" else schedule.alpha(t))
    for a_m, r_m, d_m in zip(a, r, d[1:], strict=True):
        x_t = x_t - (q_t * B * a_m / r_m) * (d_m - d[0])
    return x_t


@final
@dataclass(frozen=True)
class UniPC(StepSolver):
    """`unipc:order=1..3[,variant=bh1|bh2][,form=eps|x0]`; order p means UniP-p and UniC-p, of accuracy p + 1."""

    order: int = 2
    variant: str = "bh2"
    form: str = "x0"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InputError(f"unipc has order 1, 2 or 3, got {self.order}")
        if self.variant not in VARIANTS:
            raise InputError(f"unipc has no variant {self.variant!r}; known: {', '.join(VARIANTS)}")
        if self.form not in FORMS:
            raise InputError(f"unipc has no form {self.form!r}; known: {', '.join(FORMS)}")

    @property
    def parameterisation(self) -> str:
        return self.form

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x, before, order = noise, noise, 0
        outputs: list[Vector] = []
        times: list[float] = []
        for s, t in pairwise(grid):
            d = evaluate(x, s)
            # Correct x, which was predicted with `order` outputs from `before`.
            if order and math.isfinite(schedule.lam(times[0])):
                x = update([*outputs[:order], d], before, [*times[:order], s], s, self.variant, self.form, schedule)
            elif order:
                outputs, times = [], []
            outputs, times = [d, *outputs][: self.order], [float(s), *times][: self.order]
            # Predict.
            order = min(len(outputs), orders_left(t, grid, schedule))
            before, x = x, update(outputs[:order], x, times[:order], t, self.variant, self.form, schedule)
        return x

    def __str__(self) -> str:
        variant = "" if self.variant == "bh2" else f",variant={self.variant}"
        form = "" if self.form == "x0" else f",form={self.form}"
        return f"unipc:order={self.order}{variant}{form}"
