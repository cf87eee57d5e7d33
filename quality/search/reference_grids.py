"""Grids read off one many-step run that the search makes anyway: candidates, which the search judges like any other.

    gits      the path of least sum of one-step errors |DDIM(x_i -> t_j) - x_j|, by dynamic programming over all pairs
              of the run's times (Chen et al., arXiv 2405.11326), in x / alpha and in x / sqrt(alpha^2 + sigma^2)
    rotation  equal total turning of the direction eps between neighbours (arXiv 2603.00763)

x_i, z_i: states and answers of the run at its times t_i, of a few seeds. Such grids are known to fail on latents, so
none is taken unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import final

import numpy as np

from ...engine.compiler.basis import row, solve, x_row
from ...engine.compiler.schedule import Float64s, Schedule, parse_schedule
from ...engine.compiler.solvers import parse_solver
from ...engine.errors import InputError
from ..sampling.reference import Trajectory
from .candidates import Candidate, Setting

# Solvers that are tried on them, most often good ones first, with their bases.
SOLVERS = (
    ("pfdiff:k=2,l=1", "eps"),
    ("ipndm:order=2", "x0"),
    ("ipndm:order=3", "eps"),
    ("unipc:order=2", None),
    ("deis:order=2", "eps"),
    ("dpm++:2m", None),
    ("ddim", "eps"),
)
KINDS = ("gits", "gits-even", "rotation")


@final
class ReferenceGrids:
    """The grids of one trajectory, for any number of intervals."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.process = parse_schedule(trajectory.program.schedule)
        self.times = trajectory.program.times
        self._prediction = trajectory.program.prediction if trajectory.program.clip is None else "x0"
        self._sigma_data = trajectory.program.sigma_data
        points = len(self.times)
        plain, even = np.full((points, points + 1), np.inf), np.full((points, points + 1), np.inf)
        rows = [row(self._prediction, float(t), self.process, self._sigma_data) for t in self.times]
        ends = [x_row(float(t), self.process) for t in self.times] + [(1.0, 0.0)]
        after = np.concatenate([trajectory.states, trajectory.samples[None]])
        for i in range(points):
            for j in range(i + 1, points + 1):
                p, q = solve(ends[j], ends[i], rows[i])
                guess = np.float32(p) * trajectory.states[i] + np.float32(q) * trajectory.answers[i]
                error = float(np.sqrt(np.mean((guess - after[j]).astype(np.float64) ** 2)))
                alpha, sigma = ends[j]
                plain[i, j] = error / max(alpha, 1e-6)
                even[i, j] = error / float(np.hypot(alpha, sigma))
        self._errors = {"gits": plain, "gits-even": even}
        self._turned = np.append(0.0, np.cumsum(self._angles(trajectory, rows)))

    def _angles(self, trajectory: Trajectory, rows: list[tuple[float, float]]) -> Float64s:
        """Between the eps of neighbouring times, mean over seeds, [M - 1]."""
        directions = []
        for n, t in enumerate(self.times):
            p, q = solve((0.0, 1.0), x_row(float(t), self.process), rows[n])
            eps = (p * trajectory.states[n] + q * trajectory.answers[n]).astype(np.float64)
            directions.append(eps / np.maximum(np.linalg.norm(eps, axis=1, keepdims=True), 1e-12))
        cosines = [np.sum(a * b, axis=1) for a, b in pairwise(directions)]
        return np.array([float(np.mean(np.arccos(np.clip(one, -1, 1)))) for one in cosines])

    def grid(self, kind: str, intervals: int) -> tuple[float, ...] | None:
        """The times of so many intervals with the clean point, None where the run has too few."""
        if intervals > len(self.times):
            return None
        found = self._rotation(intervals) if kind == "rotation" else _path(self._errors[kind], intervals, self.times)
        if found is None or not np.all(np.diff(found) < 0):
            return None
        return (*(float(t) for t in found), float(self.process.clean))

    def _rotation(self, intervals: int) -> Float64s:
        """Times at equal parts of the turning, the last one interval before the end."""
        parts = np.linspace(0, self._turned[-1], intervals + 1)[:-1]
        times = np.interp(parts, self._turned, self.times)
        return _whole(times, self.process) if self.process.discrete else times

    def candidates(self, setting: Setting) -> Iterator[Candidate]:
        """The solvers on the grids, grid by grid."""
        for solver, basis in SOLVERS:
            try:
                intervals = parse_solver(solver).intervals(setting.nfe)
            except InputError:
                continue
            for kind in KINDS:
                grid = self.grid(kind, intervals)
                if grid is not None:
                    yield Candidate(solver, grid, basis, grid[0])


def _path(errors: Float64s, intervals: int, times: Float64s) -> Float64s | None:
    """The times of the cheapest path from the first time to the end in exactly so many steps."""
    points = len(times)
    cost = np.full((intervals + 1, points + 1), np.inf)
    before = np.zeros((intervals + 1, points + 1), int)
    cost[0, 0] = 0
    for step in range(1, intervals + 1):
        total = cost[step - 1, :points, None] + errors
        before[step] = np.argmin(total, axis=0)
        cost[step] = np.min(total, axis=0)
    if not np.isfinite(cost[intervals, points]):
        return None
    place, path = points, []
    for step in range(intervals, 0, -1):
        place = int(before[step, place])
        path.append(place)
    return times[np.array(path[::-1])]


def _whole(times: Float64s, process: Schedule) -> Float64s:
    """Rounded, at least one apart."""
    found = np.rint(times)
    for n in range(1, len(found)):
        found[n] = min(found[n], found[n - 1] - 1)
    return np.maximum(found, process.first)
