"""What the config of a diffusers scheduler means: schedule, prediction and end, and the exact times of its own rules.

`convention.points(M)` are the M times at which the network may be evaluated:

| spacing           | M times before the end, T times in all                        | classes                       |
|-------------------|---------------------------------------------------------------|-------------------------------|
| linspace          | round(linspace(0, T - 1, M)), falling                         | DDIM, DDPM, PNDM, Euler, Heun |
| linspace, is_open | the same with M + 1 points, without the last                  | DPM, DEIS, UniPC              |
| leading           | (T // M) i + steps_offset                                     | DDIM, DDPM, PNDM, Euler, Heun |
| leading, is_open  | the same with T // (M + 1), i = 1 ... M                       | DPM, DEIS, UniPC              |
| trailing          | round(T - i T / M) - 1                                        | all                           |
| any, with a ramp  | the times of M sigmas between those of the rule's ends, or of | Euler, Heun, LMS, KDPM2;      |
|                   | all trained times                                             | DPM, DEIS, UniPC              |
| flow              | shift(linspace(1, shift(1 / T), M))                           | FlowMatchEuler, -Heun         |
| distilled        | M of the `origin` times k T / origin - 1                     | LCM, TCD                        |
| consistency      | every so many of T Karras sigmas                             | CMStochasticIterative           |
| flow, is_open     | shift(linspace(1, 1 / T, M + 1)), without the last            | UniPC                         |
| flow, is_open     | shift(linspace(1 - 1 / T, 0, M + 1)), without the last        | DPM, DEIS                     |

(arXiv 2305.08891, table 2.) `shift` is t -> s t / (1 + (s - 1) t); dynamic shifting is the same with s = exp(mu) or mu.
A ramp places sigma / alpha by Karras' rule with rho = 7 (arXiv 2206.00364, equation 5), evenly in its logarithm, or at
quantiles of a beta distribution (arXiv 2407.12173); on flows sigma.

Times are integers on discrete schedules: where diffusers interpolates (Euler's linspace, ramps), they are rounded here
and sigma is that of the rounded time; two that round to the same time are moved apart. Where its last evaluation is at
the end itself (`set_alpha_to_one` false, steps_offset 0), which is a step of length zero, ours is one time earlier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from ..engine.compiler.schedule import Float64s, Schedule, parse_schedule
from ..engine.compiler.solvers.abstract import Solver
from ..engine.compiler.solvers.deis import Deis
from ..engine.compiler.solvers.dpm_solver import MultiStep
from ..engine.compiler.solvers.unipc import UniPC
from ..engine.errors import BackendError, InputError


@final
@dataclass(frozen=True)
class Convention:
    """What a config means. schedule, prediction, grid, end, basis, clip, sigma_data: as `pfdiff.compile` takes them.

    grid: the nearest rule of ours, for networks without a scheduler; `points` gives diffusers' exact times. basis:
    None for the default. keeps_eps: the class's own step clips x0 and takes the network's eps as it is.
    time_scale: the network is fed times this (1000 for flow networks).
    spacing: linspace, leading, trailing, flow, or rule, where `grid` itself is exact; is_open: the rule's last point is
    dropped; length: how many times from the clean end on are in use, None for all.
    span, shift, shift_terminal: of flow spacing, in this order; span may end with None for 1 / M; latest: the time in
    place of any above it. dynamic: how the shift follows from mu, exponential or linear; "" where it is fixed.
    empirical: the patches of a sample whose mu depends on M too, as FLUX.2's does.
    ramp: karras, exponential or beta; ramp_of: spaced or all, what it goes between; ramp_span: the least and the
    largest sigma instead of those.
    solver: the step of a scheduler that draws noise, which its network may be trained for: the default, on its own
    times. origin: of spacing distilled (LCM, TCD), how many times the network was distilled on.
    """

    schedule: str
    prediction: str
    grid: str
    end: str = "clean"
    basis: str | None = None
    clip: float | None = None
    keeps_eps: bool = False
    time_scale: float = 1.0
    sigma_data: float = 0.5
    spacing: str = "rule"
    is_open: bool = False
    offset: int = 0
    length: int | None = None
    span: tuple[float, float | None] = (1.0, 1e-3)
    shift: float = 1.0
    shift_terminal: float | None = None
    latest: float = 1.0
    ramp: str | None = None
    ramp_of: str = "spaced"
    ramp_span: tuple[float | None, float | None] = (None, None)
    solver: str | None = None
    origin: int = 50
    dynamic: str = ""
    empirical: int | None = None

    def points(
        self, count: int, *, times: Sequence[float] | None = None, sigmas: Sequence[float] | None = None
    ) -> tuple[float, ...] | None:
        """`count` times, falling, then the end's; None where the grid's own rule is to be used.

        times: the schedule's, in place of the rule's. sigmas: sigma / alpha, in place of the rule's; on flow schedules
        sigma before the shift, as diffusers' pipelines give it. When their number is not `count`, for a solver that
        walks more points than it evaluates, the line through them and the end is read at `count` places.
        Raises InputError when they do not fall or there are too many for the schedule.
        """
        process = parse_schedule(self.schedule)
        last = process.clean if self.end == "clean" else process.first
        if sigmas is not None:
            sigmas = [sigma for sigma in sigmas if sigma > 0]  # some lists end with the clean point
            if self.spacing != "flow":
                times = process.time_from_lambda(-np.log(sigmas)).tolist()
        if times is not None:
            points = _resampled(times, last, count)
        elif self.spacing == "flow":
            points = self._flow(count, sigmas)
        elif self.spacing == "consistency":
            points = self._of_consistency(count, process)
        elif self.spacing == "rule":
            return None
        else:
            points = self._discrete(count, process)
        if process.discrete:
            # No network is asked at the end itself: that step would have no length.
            points = np.clip(np.round(points), last + 1, process.last)
            points = _apart(points, last + 1) if self.ramp else points
        else:
            points = np.clip(points, process.first, process.last)  # powers and logarithms miss the ends by a rounding
        nearest = last + 1e-9 * abs(last)  # a rounding above the end is no step
        if not np.all(np.diff(points) < 0) or (count > 0 and points[-1] <= nearest):
            raise InputError(f"{count} times do not fall strictly; take fewer steps, or give times that fall")
        return (*points.tolist(), float(last))

    def walk(
        self,
        solver: Solver,
        nfe: int,
        *,
        times: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> str | tuple[float, ...]:
        """The grid of `solver` with `nfe` evaluations: `points` for as many as it walks, or the rule.

        DPM-Solver, UniPC and DEIS take the times that diffusers' classes of these solvers take from the same config.
        """
        # Single-step solvers of higher order end their intervals at trained times, and reach the clean point alone.
        count = solver.intervals(nfe) + (solver.evaluations > 1 and self.end == "clean")
        multistep = isinstance(solver, (MultiStep, UniPC)) or (isinstance(solver, Deis) and solver.variant == "lambda")
        rule = replace(self, is_open=True) if multistep and self.spacing in ("linspace", "leading") else self
        return rule.points(count, times=times, sigmas=sigmas) or self.grid

    def _discrete(self, count: int, process: Schedule) -> Float64s:
        whole = int(process.last) + 1
        length = self.length or whole
        total = count + self.is_open
        match self.spacing:
            case "linspace":
                points = np.linspace(0, length - 1, total).round()[::-1][:count]
            case "distilled":
                points = self._distilled(count, whole)
            case "leading":
                points = np.arange(total, dtype=np.float64)[::-1][:count] * (length // total) + self.offset
            case _:
                points = np.round(length - np.arange(count) * (whole / count)) - 1
        if self.ramp is None:
            return points
        ends = np.clip(points[[0, -1]], 0, process.last) if self.ramp_of == "spaced" else [process.last, process.first]
        highest, lowest = np.exp(-process.lam(ends)).tolist()
        given_low, given_high = self.ramp_span
        sigmas = ramped(self.ramp, given_high or highest, given_low or lowest, count)
        return process.time_from_lambda(-np.log(sigmas))

    def _distilled(self, count: int, whole: int) -> Float64s:
        """LCM's times: `count` of the `origin` times k T / origin - 1, from the last one down (diffusers)."""
        if count > self.origin:
            raise InputError(f"{count} evaluations of a network that was distilled on {self.origin} times; take fewer")
        known = np.arange(self.origin, 0, -1) * (whole // self.origin) - 1.0
        return known[np.floor(np.linspace(0, self.origin, count, endpoint=False)).astype(int)]

    def _of_consistency(self, count: int, process: Schedule) -> Float64s:
        """Consistency models' sigmas: places 0, r, 2 r, ... of Karras' rule over all `length` of them (diffusers)."""
        length = self.length or count
        if count > length:
            raise InputError(f"{count} evaluations of a consistency model with {length} times; take fewer")
        high, low = process.last ** (1 / 7), process.first ** (1 / 7)
        return (high + np.arange(count) * (length // count) / max(length - 1, 1) * (low - high)) ** 7

    def _flow(self, count: int, given: Sequence[float] | None) -> Float64s:
        low, high = self.ramp_span
        if self.ramp is not None and low is not None and high is not None:  # UniPC: of sigma / alpha
            sigmas = ramped(self.ramp, high, low, count)
            return sigmas / (sigmas + 1)
        first, last = self.span
        last = 1 / count if last is None else last
        sigmas = (
            np.linspace(first, last, count + self.is_open)[:count] if given is None else _resampled(given, 0, count)
        )
        shift = self.shift
        if self.empirical is not None:
            mu = empirical_mu(self.empirical, count)
            shift = mu if self.dynamic == "linear" else math.exp(mu)
        sigmas = shifted(sigmas, shift)
        if self.shift_terminal and count > 1:
            sigmas = 1 - (1 - sigmas) * (1 - self.shift_terminal) / (1 - sigmas[-1])
        sigmas = sigmas if self.ramp is None else ramped(self.ramp, sigmas[0], sigmas[-1], count)
        return np.minimum(sigmas, self.latest)


def empirical_mu(patches: int, count: int) -> float:
    """mu of FLUX.2's pipelines: a line through those of 10 and of 200 steps (diffusers, compute_empirical_mu)."""
    many = 0.00016927 * patches + 0.45666666
    if patches > 4300:
        return many
    few = 8.73809524e-05 * patches + 1.89833333
    return many + (many - few) / 190 * (count - 200)


def ramped(ramp: str, highest: float, lowest: float, count: int) -> Float64s:
    """`count` falling sigmas: Karras' rule with rho = 7, evenly spaced logarithms, or quantiles of Beta(0.6, 0.6).

    Raises BackendError without scipy, which has the quantiles.
    """
    if ramp == "karras":
        return np.linspace(highest ** (1 / 7), lowest ** (1 / 7), count) ** 7
    if ramp == "beta":
        return lowest + _beta_quantiles(1 - np.linspace(0, 1, count)) * (highest - lowest)
    return np.exp(np.linspace(np.log(highest), np.log(lowest), count))


def _beta_quantiles(p: Float64s) -> Float64s:
    """Those of Beta(0.6, 0.6), as diffusers' beta sigmas have them ("Beta Sampling is All You Need", 2407.12173)."""
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise BackendError(f"a scheduler with use_beta_sigmas needs scipy ({error}); pip install scipy") from None
    return np.asarray(betaincinv(0.6, 0.6, p), np.float64)


def _apart(points: Float64s, lowest: float) -> Float64s:
    """Falling integer times, each at least 1 below the one before; as many stay as can."""
    points = points.copy()
    for i in range(1, len(points)):
        points[i] = min(points[i], points[i - 1] - 1)
    for i in range(len(points) - 1, -1, -1):
        points[i] = max(points[i], lowest if i == len(points) - 1 else points[i + 1] + 1)
    return points


def shifted(t: Float64s, shift: float) -> Float64s:
    """shift t / (1 + (shift - 1) t): the resolution's shift of flow times (arXiv 2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def _resampled(given: Sequence[float], last: float, count: int) -> Float64s:
    knots = np.append(np.asarray(given, np.float64), last)
    return np.interp(np.arange(count) * (len(given) / count), np.arange(len(knots)), knots)
