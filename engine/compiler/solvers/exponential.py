"""What exponential integrators share: the length of a step, the phi functions, and quadrature.

In the symbols of dpm_solver.py: g = +lambda in the eps form, g = -lambda in the x0 form, and h = g_t - g_s.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from ..schedule import Float64s, Schedule


def step(s: float, t: float, form: str, schedule: Schedule) -> float:
    """h = g_t - g_s: the length of the interval in lambda, negative in the x0 form."""
    h = float(schedule.lam(t) - schedule.lam(s))
    return h if form == "eps" else -h


def varphi(k: int, h: float) -> float:
    """phi_k(h) = int_0^1 e^((1-r) h) r^(k-1) / (k-1)! dr, without cancellation at small h (arXiv 2206.00927, B.1)."""
    r, weight = gauss(40)
    return float(np.sum(weight * np.exp((1 - r) * h) * r ** (k - 1))) / math.factorial(k - 1)


@cache
def gauss(count: int) -> tuple[Float64s, Float64s]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1], float64 [count] each."""
    points, weight = np.polynomial.legendre.leggauss(count)
    return (points + 1) / 2, weight / 2


def orders_left(t: float, grid: Float64s, schedule: Schedule) -> int:
    """Steps left, the one to t included: no step has a higher order.

    So where the grid ends at the clean point, or at the first trained time of a discrete schedule, as diffusers lowers
    its orders in few steps (`lower_order_final`); any other end bounds nothing.
    """
    ends = (schedule.clean, schedule.first) if schedule.discrete else (schedule.clean,)
    return int(np.sum(grid <= t)) if grid[-1] in ends else len(grid)
