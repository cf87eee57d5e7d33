"""Grids of other authors: the beta family, and the optimised times of Align Your Steps.

    beta      t = stop + (start - stop) Q(u), Q the quantile function of the Beta(a, b) distribution, u even in (0, 1]
    ays       log(sigma / alpha) read off the published ten steps by linear interpolation over the step's number

beta: the "beta" schedule of ComfyUI and stable-diffusion.cpp, a = b = 0.6 there; arXiv 2407.12173, section 4.2.
ays: Sabour et al., arXiv 2404.14507, as published for Stable Diffusion 1.5, XL and Stable Video Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .schedule import Float64s, Schedule

NODES = 20_001  # of the integral that gives the quantile function
# sigma / alpha of the ten published evaluations.
AYS = {
    "ays_sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def beta(schedule: Schedule, points: int, start: float, stop: float, a: float = 0.6, b: float = 0.6) -> Float64s:
    low, high = float(schedule.unwarp(stop)), float(schedule.unwarp(start))
    times = schedule.warp(low + (high - low) * beta_quantile(1 - np.arange(points) / points, a, b))
    times[0] = start
    return np.clip(times, schedule.first, schedule.last)


def beta_quantile(u: Float64s, a: float, b: float) -> Float64s:
    """Q(u) of Beta(a, b) in 0..1, for a and b of at least 0.5.

    With x = sin^2(p) the density x^(a-1) (1-x)^(b-1) dx is 2 sin^(2a-1) cos^(2b-1) dp, which is bounded.
    """
    p = np.linspace(0, np.pi / 2, NODES)
    middle = (p[1:] + p[:-1]) / 2
    parts = np.sin(middle) ** (2 * a - 1) * np.cos(middle) ** (2 * b - 1)
    total = np.append(0.0, np.cumsum(parts))
    return np.sin(np.interp(u, total / total[-1], p)) ** 2


def ays(name: str) -> Callable[[Schedule, int, float, float], Float64s]:
    """The rule of that name, as grid.py calls it."""

    def rule(schedule: Schedule, points: int, start: float, stop: float) -> Float64s:
        published = -np.log(AYS[name])
        place = np.linspace(0, len(published) - 1, points)
        lam = np.interp(place, np.arange(len(published)), published)
        # What the schedule does not reach is drawn in, evenly.
        first, last = max(published[0], float(schedule.lam(start))), min(published[-1], float(schedule.lam(stop)))
        part = (lam - published[0]) / (published[-1] - published[0])
        times = schedule.time_from_lambda(first + (last - first) * part)
        times[0] = start
        return np.clip(times, schedule.first, schedule.last)

    return rule
