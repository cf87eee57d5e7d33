"""A network's prediction and a solver's basis, as rows of two numbers; conversions are 2x2 solves.

Every quantity here is a combination of the clean sample and the noise. With x_t = alpha x_0 + sigma eps,

    eps = (0, 1)   x0 = (1, 0)   v = (-sigma, alpha)   flow = (-1, 1)
    F = ((1 - c_skip alpha) / c_out, -c_skip sigma / c_out)

are (coefficient of x_0, coefficient of eps). The F of consistency models has c_skip and the numerator of c_out at
sigma - epsilon, epsilon the sigma of the schedule's first time. Given x_t and one of them, every other is p x_t + q d:
two unknowns, two equations. The DDIM step is the same solve with the row (alpha_t, sigma_t) of another time.

v: Salimans & Ho, arXiv 2202.00512. flow: Lipman et al., arXiv 2210.02747. F, c_*: Karras et al., arXiv 2206.00364,
table 1. Consistency models: Song et al., arXiv 2303.01469, appendix C.
"""

from __future__ import annotations

import math

from ..errors import InputError
from .schedule import Schedule

Row = tuple[float, float]

PREDICTIONS = ("eps", "x0", "v", "flow", "edm", "consistency")
PRECONDITIONED = ("edm", "consistency")  # fed c_in x and ln(sigma) / 4
BASES = ("eps", "x0", "v")


def row(kind: str, t: float, schedule: Schedule, sigma_data: float = 0.5) -> Row:
    """(coefficient of x_0, coefficient of eps) of a prediction at time t."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    match kind:
        case "eps":
            return 0.0, 1.0
        case "x0":
            return 1.0, 0.0
        case "v":
            return -sigma, alpha
        case "flow":
            return -1.0, 1.0
        case "edm":
            _, c_skip, c_out, _ = edm_preconditioning(sigma, sigma_data)
            return (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out
        case "consistency":
            above = sigma - float(schedule.sigma(schedule.first))
            if above <= 0:
                raise InputError(f"a consistency model gives x_t itself at time {t:g}; evaluate it above that time")
            c_skip = sigma_data**2 / (above**2 + sigma_data**2)
            c_out = above * sigma_data / math.sqrt(sigma**2 + sigma_data**2)
            return (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out
    raise InputError(f"unknown prediction {kind!r}; known: {', '.join(PREDICTIONS)}")


def velocity(basis: str, schedule: Schedule) -> str:
    """The prediction that a basis name means on this schedule."""
    return schedule.velocity if basis == "v" else basis


def basis_row(basis: str, t: float, schedule: Schedule) -> Row:
    """The row of a solver's basis; `v` is the velocity that belongs to the schedule."""
    return row(velocity(basis, schedule), t, schedule)


def solve(to: Row, x: Row, d: Row) -> Row:
    """(p, q) with `to` = p `x` + q `d`. Raises ZeroDivisionError when x and d do not determine it."""
    determinant = x[0] * d[1] - x[1] * d[0]
    p = (to[0] * d[1] - to[1] * d[0]) / determinant
    q = (x[0] * to[1] - x[1] * to[0]) / determinant
    return p, q


def x_row(t: float, schedule: Schedule) -> Row:
    return float(schedule.alpha(t)), float(schedule.sigma(t))


def transfer(s: float, t: float, basis: str, schedule: Schedule) -> Row:
    """(p, q) of the first-order step x_t = p x_s + q d that holds d constant in its basis.

    In any basis this is the DDIM step (Song et al., arXiv 2010.02502, eq. 12 with zero variance) when d was
    found at (x_s, s). Raises InputError where x_s and d do not determine x_t: alpha_s = 0 in eps, sigma_s = 0 in x0.
    """
    try:
        return solve(x_row(t, schedule), x_row(s, schedule), basis_row(basis, s, schedule))
    except ZeroDivisionError:
        what = "alpha" if basis == "eps" else "sigma"
        raise InputError(
            f"a step in basis {basis} cannot start at time {s:g}, where {what} is 0; use another basis or grid"
        ) from None


def convert(to: str, given: str, t: float, schedule: Schedule, sigma_data: float = 0.5) -> Row:
    """(p, q) with `to` = p x_t + q `given` at time t, both named predictions. Raises InputError."""
    if to == given:
        return 0.0, 1.0
    rows = [row(kind, t, schedule, sigma_data) for kind in (to, given)]
    try:
        return solve(rows[0], x_row(t, schedule), rows[1])
    except ZeroDivisionError:
        raise InputError(
            f"{given} does not determine {to} at time {t:g}; start below it (t_start) or use another basis"
        ) from None


def edm_preconditioning(sigma: float, sigma_data: float) -> tuple[float, float, float, float]:
    """c_in, c_skip, c_out, c_noise of EDM (arXiv 2206.00364, table 1)."""
    total = sigma**2 + sigma_data**2
    return 1 / math.sqrt(total), sigma_data**2 / total, sigma * sigma_data / math.sqrt(total), math.log(sigma) / 4
