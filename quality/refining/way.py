"""The reference's way at its own times and at times between them.

    x(t) = u x(t_i) + w x(t_i+1),   (alpha, sigma)(t) = u (alpha, sigma)(t_i) + w (alpha, sigma)(t_i+1)

Between two of the reference's times the network's answer is taken as constant, as in a step of DDIM (arXiv 2010.02502,
equation 12). Near the noisy end the reference has few times, and the best first time of a table lies between two.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import final

import numpy as np

from ...engine.compiler.schedule import Float64s, Schedule, parse_schedule
from ..sampling.reference import Paths

PARTS = 3  # of each gap, even in arctan(alpha / sigma)


@final
class Way:
    """times [M]: falling; the reference's own are at the places `known`. On discrete schedules all are whole."""

    def __init__(self, paths: Paths, schedule: str) -> None:
        process, self._states = parse_schedule(schedule), paths.states
        times, self._weights, self.known = [], [], list[int]()
        for first, (start, end) in enumerate(zip(paths.times[:-1], paths.times[1:], strict=True)):
            self.known.append(len(times))
            for t in (float(start), *_between(process, float(start), float(end))):
                times.append(t)
                self._weights.append((first, *_weights(process, t, float(start), float(end))))
        self.times: Float64s = np.array([*times, paths.times[-1]])
        self.known.append(len(times))
        self._weights.append((len(paths.times) - 1, 1.0, 0.0))

    @property
    def has_between(self) -> bool:
        return len(self.known) < len(self.times)

    def slid(self, place: int, slide: int, *, along_known: bool) -> int | None:
        """The place `slide` times after `place`, of the reference's own times or of all; None beyond the ends."""
        places = self.known if along_known else range(len(self.times))
        found = (bisect_right(places, place) - 1 if slide > 0 else bisect_left(places, place)) + slide
        return places[found] if 0 <= found < len(places) else None

    def state(self, place: int, seeds: int) -> Float64s:
        """x at times[place] of the first `seeds` seeds, [seeds * elements]."""
        first, u, w = self._weights[place]
        found = u * self._states[first, :seeds].astype(np.float64)
        if w:
            found += w * self._states[first + 1, :seeds]
        return found.reshape(-1)


def _between(process: Schedule, start: float, end: float) -> list[float]:
    first, last = (math.atan2(float(process.alpha(t)), float(process.sigma(t))) for t in (start, end))
    angles = np.linspace(first, last, PARTS + 1)[1:-1]
    times = np.atleast_1d(process.time_from_lambda(np.log(np.tan(angles))))
    times = np.unique(times.round() if process.discrete else times)[::-1]
    return [float(t) for t in times if end < t < start]


def _weights(process: Schedule, t: float, start: float, end: float) -> tuple[float, float]:
    if t == start:
        return 1.0, 0.0
    ends = np.array([[float(process.alpha(s)), float(process.sigma(s))] for s in (start, end)])
    u, w = np.linalg.solve(ends.T, [float(process.alpha(t)), float(process.sigma(t))])
    return float(u), float(w)
