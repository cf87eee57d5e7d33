"""Time grids: the decreasing points t_0 > ... > t_M that a solver walks.

A rule places the times at which the network may be evaluated between `t_start` and the schedule's first
time; with `end="clean"` the clean point is then appended, so M intervals take M rule points and the clean
point. Discrete schedules get integers; where rounding makes two points equal they are moved apart by one.

| rule                     | points, before rounding                              | source                        |
|--------------------------|------------------------------------------------------|-------------------------------|
| `uniform`                | evenly spaced in t                                   | DDIM, arXiv 2010.02502        |
| `trailing`               | evenly spaced, from t_start, last one interval early | arXiv 2305.08891, table 2     |
| `leading:offset=1`       | multiples of the rounded-down interval, plus offset  | the same                      |
| `quadratic:fraction=0.8` | evenly spaced in sqrt(t), from fraction of all times | DDIM, appendix D.2            |
| `logsnr`                 | evenly spaced in lambda                              | DPM-Solver, arXiv 2206.00927  |
| `karras:rho=7`           | (sigma / alpha)^(1/rho) evenly spaced                | EDM, arXiv 2206.00364, eq. 5  |
| `angle:power=1`          | arctan(sigma / alpha)^(1/power) evenly spaced, last  | of v, arXiv 2202.00512, app. D |
|                          | one interval early; `scale`: of sigma / (scale alpha) |                               |
| `beta:a,b`               | quantiles of the Beta(a, b) distribution, 0.6,0.6    | published_grids.py            |
| `ays_sd`, `ays_sdxl`,    | published times of Align Your Steps, read off for    | published_grids.py            |
| `ays_svd`                | other counts                                         |                               |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import InputError, did_you_mean, shown
from .published_grids import AYS, ays, beta
from .schedule import Float64s, Schedule

Grid = str | Sequence[float]


def uniform(schedule: Schedule, points: int, start: float, stop: float) -> Float64s:
    u = np.linspace(schedule.unwarp(stop), schedule.unwarp(start), points)[::-1]
    return schedule.warp(u) if points > 1 else np.array([start])


def trailing(schedule: Schedule, points: int, start: float, stop: float) -> Float64s:
    if schedule.discrete:
        return np.round((start + 1) * (1 - np.arange(points) / points)) - 1
    return schedule.warp(schedule.unwarp(start) * (1 - np.arange(points) / points))


def leading(schedule: Schedule, points: int, start: float, stop: float, offset: float = 0) -> Float64s:
    if schedule.discrete:
        return np.arange(points)[::-1] * ((start + 1) // points) + offset
    return schedule.warp(np.maximum(np.arange(points)[::-1] / points * schedule.unwarp(start), stop))


def quadratic(schedule: Schedule, points: int, start: float, stop: float, fraction: float = 0.8) -> Float64s:
    if schedule.discrete and start == schedule.last:
        start = (schedule.last + 1) * fraction
    times = np.linspace(np.sqrt(stop), np.sqrt(start), points)[::-1] ** 2
    times[-1], times[0] = stop, start  # the square of a root may fall below an integer
    return times


def logsnr(schedule: Schedule, points: int, start: float, stop: float) -> Float64s:
    return _from_lambda(schedule, np.linspace(schedule.lam(start), schedule.lam(stop), points), start, stop)


def karras(schedule: Schedule, points: int, start: float, stop: float, rho: float = 7) -> Float64s:
    high, low = (np.exp(-schedule.lam(t) / rho) for t in (start, stop))
    return _from_lambda(schedule, -rho * np.log(np.linspace(high, low, points)), start, stop)


def angle(schedule: Schedule, points: int, start: float, stop: float, power: float = 1, scale: float = 1) -> Float64s:
    high, low = (np.arctan2(schedule.sigma(t), scale * schedule.alpha(t)) ** (1 / power) for t in (start, stop))
    angles = np.linspace(high, max(high / points, low), points) ** power
    angles = np.minimum(angles, np.pi / 2)  # at alpha = 0 a rounding would be beyond it
    with np.errstate(divide="ignore"):
        return _from_lambda(schedule, -np.log(scale * np.tan(angles)), start, None)


def _from_lambda(schedule: Schedule, lam: Float64s, start: float, stop: float | None) -> Float64s:
    """The times of lam, with the ends exact; a stop of None is not an end."""
    times = schedule.time_from_lambda(lam)
    if stop is not None:
        times[-1] = stop
    times[0] = start
    return np.clip(times, schedule.first, schedule.last)  # a tangent misses the ends by a rounding


RULES: dict[str, Callable[..., Float64s]] = {
    rule.__name__: rule for rule in (uniform, trailing, leading, quadratic, logsnr, karras, angle, beta)
} | {name: ays(name) for name in AYS}
ROUNDED = ("logsnr", "karras", "angle", "beta", *AYS)  # on discrete schedules; DDIM's code truncates the others
LEAST = {"offset": 0.0, "a": 0.5, "b": 0.5}  # of a parameter; of the others above 0
EARLY = ("trailing", "leading", "angle", "beta", *AYS)  # these stop one interval before the end


def listed(grid: Grid) -> Float64s | None:
    """The times of a list, "999,500,-1" or numbers; None for a rule. Raises InputError."""
    if isinstance(grid, str) and ("," not in grid or grid.partition(":")[0] in RULES):
        return None
    try:
        parts = [part for part in grid.split(",") if part.strip()] if isinstance(grid, str) else grid
        return np.asarray([float(t) for t in parts], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"grid {shown(grid)} is not a list of numbers") from error


def check_grid(grid: Grid) -> None:
    """Raises InputError for what is neither a rule with parameters of its own nor a list of numbers."""
    if listed(grid) is None:
        _parse(str(grid))


def make_grid(
    grid: Grid,
    schedule: Schedule,
    intervals: int,
    t_start: float | None = None,
    end: str | float = "clean",
    gap: int = 1,
) -> Float64s:
    """The times of `intervals` intervals, float64, strictly decreasing.

    grid: a rule of the table above or the times themselves ("999,500,-1" as a string).
    t_start: where the grid starts, by default the schedule's last time.
    end: "clean", "first" (the least noisy trained time, as in Stable Diffusion's code) or a time.
    gap: evaluations per interval. Above 1 (single-step solvers of higher order) neighbouring integer times
    are at least that far apart, all intervals end at trained times, and the clean point comes in addition.
    Raises InputError: unknown rule, too few times in the schedule, a list of the wrong length or order.
    """
    if (given := listed(grid)) is not None:
        return _checked(given, schedule, intervals, t_start, gap)
    assert isinstance(grid, str)
    name, options = _parse(grid)
    start = float(schedule.check(schedule.last if t_start is None else t_start))
    stop, tail = _end(end, schedule)
    if start <= stop and not (start == stop and tail < stop):
        raise InputError(f"t_start {start:g} is not above the grid's end {stop:g}; start earlier in the noise")
    if name in ("logsnr", "karras") and not np.isfinite(schedule.lam(start)):
        raise InputError(f"grid {name} cannot start at time {start:g}, where alpha is 0; pass t_start below it")

    # How many points the rule itself places, and the lowest time that they may take.
    ends_clean = tail == schedule.clean
    append_tail = ends_clean or name in EARLY
    points = intervals + 1 - (append_tail and not (ends_clean and gap > 1))
    lowest = stop if ends_clean or not append_tail else stop + gap
    if schedule.discrete:
        _check_room(points, gap, start, lowest, name)

    times = RULES[name](schedule, points, start, stop, **options)
    if schedule.discrete:
        # Truncation is what DDIM's code does; rules in lambda name no convention and round.
        times = _space_out(np.round(times) if name in ROUNDED else np.floor(times), lowest, start, gap)
    if append_tail:
        times = np.append(times, tail)
    if not np.all(np.diff(times) < 0):
        raise InputError(f"grid {grid} from {start:g} to {tail:g} with {len(times)} points does not fall strictly")
    return times


def _end(end: str | float, schedule: Schedule) -> tuple[float, float]:
    """(the lowest time at which the network may be evaluated, the last point of the grid)."""
    if isinstance(end, str) and end not in ("clean", "first"):
        raise InputError(f"unknown end {shown(end)}; expected clean, first or a time")
    if end == "clean" or end == schedule.clean:
        return schedule.first, schedule.clean
    stop = schedule.first if isinstance(end, str) else float(schedule.check(end))
    return stop, stop


def _parse(grid: str) -> tuple[str, dict[str, float]]:
    name, _, query = grid.partition(":")
    if name not in RULES:
        raise InputError(
            f"unknown grid {shown(grid)}; known: {', '.join(RULES)}, a list of times, or diffusers where a scheduler "
            f"came with the network{did_you_mean(name, RULES)}"
        )
    known = list(inspect.signature(RULES[name]).parameters)[4:]
    if "," in query and "=" not in query and query.count(",") == len(known) - 1:  # beta:0.6,0.6
        query = "&".join(f"{key}={value}" for key, value in zip(known, query.split(","), strict=True))
    try:
        options = {key: float(value) for key, value in (pair.split("=") for pair in query.split("&") if pair)}
    except ValueError as error:
        raise InputError(f"grid {shown(grid)}: expected key=number after the colon") from error
    for key, value in options.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise InputError(f"grid {name} has no parameter {shown(key)}; it has {', '.join(known) or 'none'}{hint}")
        if value < LEAST.get(key, 1e-300) or (key == "fraction" and value > 1):
            raise InputError(f"grid {shown(grid)}: {key} {value:g} is out of range")
    return name, options


def _check_room(points: int, gap: int, start: float, stop: float, grid: Grid) -> None:
    room = int(start - stop) // gap + 1
    if points > room:
        raise InputError(
            f"grid {grid} needs {points} times but the schedule has {max(room, 0)} between {start:g} and {stop:g}; "
            "use fewer evaluations, a smaller k, or a longer schedule"
        )


def _space_out(times: Float64s, stop: float, start: float, gap: int) -> Float64s:
    """Integer times at least `gap` apart inside [stop, start]; moves as few points as it can."""
    times = np.clip(times, stop, start)
    for i in range(1, len(times)):
        times[i] = min(times[i], times[i - 1] - gap)
    times[-1] = max(times[-1], stop)
    for i in range(len(times) - 2, -1, -1):
        times[i] = max(times[i], times[i + 1] + gap)
    return times


def _checked(times: Float64s, schedule: Schedule, intervals: int, t_start: float | None, gap: int) -> Float64s:
    if t_start is not None and (len(times) == 0 or times[0] != t_start):
        raise InputError("t_start and a list of times contradict each other; give one of them")
    ends_clean = len(times) > 0 and times[-1] == schedule.clean
    expected = intervals + 1 + (gap > 1 and ends_clean)
    if len(times) != expected:
        raise InputError(f"this solver and NFE take {expected} grid times, got {len(times)}")
    if not np.all(np.diff(times) < 0):
        raise InputError("grid times must fall strictly: no two equal, none rising")
    schedule.alpha(times)  # inside the schedule, and integers where it is discrete
    if (not ends_clean and times[-1] < schedule.first) or np.any(times[:-1] < schedule.first):
        raise InputError(f"grid times must be at least {schedule.first:g}; only the last may be {schedule.clean:g}")
    if schedule.discrete and gap > 1 and np.any(-np.diff(times[: intervals + 1]) < gap):
        raise InputError(f"this solver evaluates {gap} times an interval; grid times must be at least {gap} apart")
    return times
