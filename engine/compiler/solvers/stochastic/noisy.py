"""The first-order step that adds noise: the DDIM step with a part of the noise drawn anew.

    x_t = alpha_t x_0 + sqrt(sigma_t^2 - v^2) eps + v xi         Song et al., arXiv 2010.02502, equation 12

x_0 and eps are those that x_s and the network's output mean; v is between 0, DDIM, and sigma_t, where all noise is new.
With h = lambda_t - lambda_s, the posterior q(x_t | x_s, x_0) of the forward process has v = sigma_t sqrt(1 - e^-2h).
"""

from __future__ import annotations

import math

from ....errors import InputError
from ...basis import basis_row, solve, x_row
from ...schedule import Schedule
from ..abstract import Vector


def renoise(d: Vector, x: Vector, s: float, t: float, v: float, xi: Vector, basis: str, schedule: Schedule) -> Vector:
    """x_t from x_s and the network's output d, with the noise xi of standard deviation v."""
    alpha_t, sigma_t = x_row(t, schedule)
    kept = math.sqrt(max(sigma_t**2 - v**2, 0.0))
    try:
        p, q = solve((alpha_t, kept), x_row(s, schedule), basis_row(basis, s, schedule))
    except ZeroDivisionError:
        raise InputError(f"a step in basis {basis} cannot start at time {s:g}; use another basis or grid") from None
    return p * x + q * d + v * xi


def posterior_deviation(s: float, t: float, schedule: Schedule) -> float:
    """Standard deviation of q(x_t | x_s, x_0): sigma_t sqrt(1 - e^-2h), 0 at the clean point."""
    return float(schedule.sigma(t)) * math.sqrt(-math.expm1(-2 * length(s, t, schedule)))


def length(s: float, t: float, schedule: Schedule) -> float:
    """h = lambda_t - lambda_s; infinite from alpha = 0 and to the clean point."""
    return float(schedule.lam(t) - schedule.lam(s))
