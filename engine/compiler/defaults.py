"""The default sampler: solver, grid, basis and start for a network that nobody has tuned, by rule.

What is left open in (solver, grid, basis, t_start) is filled by `filled`, without one network evaluation. `build`,
`tune`, `compare`, `PFDiffScheduler` and `pfdiff.compile("auto", ...)` all ask it. docs/concepts/defaults.md has the
study that chose the rule; bench/studies/samplers/defaults.py repeats it.

* Grid: `angle`, even in arctan(sigma / alpha) to a power that grows with the evaluations, so that one rule serves all
  schedules. It is open: no evaluation is spent at the first trained time, where x is clean already.
* Start: below the last time, at a small alpha. From the last time to there x moves by about alpha, while the x0 of an
  eps-network, (x - sigma eps) / alpha, is its error divided by alpha.
* Solver: for eps-networks a multistep method that stores x0, as a springboard from the first, noisiest evaluation
  multiplies its error; for all others PFDiff while evaluations are few, and UniPC beyond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .grid import Grid, listed
from .schedule import Schedule, parse_schedule
from .solvers import parse_solver
from .start import SHORT, default_start, time_of_alpha

AUTO = "auto"  # the solver string that stands for the rule
SOLVER, BASIS = "ipndm:order=2", "x0"  # sound on every grid, schedule and prediction, from alpha = 0 too
PFDIFF = "pfdiff:k=2,l=1"
# An eps-network's walk over every time of a short schedule is its truth; DDIM is nearest where every sixth time is
# evaluated (an MNIST network on cosine:60, bench/results/defaults.json).
MANY, OF_MANY, GRID_OF_MANY = 6, "ddim", "karras:rho=3"


@final
@dataclass(frozen=True)
class Row:
    """One line of the rule, from `nfe` evaluations on: power of the angle, and alpha at the start."""

    nfe: int
    solver: str
    basis: str | None
    power: float
    alpha: float


# The line with the largest `nfe` that is not above the NFE asked for.
OF_EPS = (
    Row(1, SOLVER, BASIS, 1.0, 0.06),
    Row(5, SOLVER, BASIS, 1.25, 0.06),
    Row(8, SOLVER, BASIS, 1.25, 0.03),
    Row(16, SOLVER, BASIS, 1.5, 0.03),
    Row(31, SOLVER, BASIS, 1.5, 0.01),
)
OF_OTHERS = (
    Row(1, PFDIFF, "eps", 1.0, 0.015),
    Row(5, PFDIFF, "eps", 1.25, 0.015),
    Row(9, PFDIFF, "eps", 1.5, 0.015),
    Row(13, "unipc:order=2", None, 1.5, 0.015),
    Row(31, "unipc:order=2", None, 1.5, 0.005),
)


@final
@dataclass(frozen=True)
class Choice:
    """A sampler but for its schedule and NFE, as `pfdiff.compile` takes it."""

    solver: str
    grid: str | tuple[float, ...]
    basis: str | None = None
    t_start: float | None = None


def by_rule(schedule: str, prediction: str, nfe: int) -> Choice:
    """The default sampler of a network that predicts `prediction` on `schedule`. Raises InputError."""
    return filled(AUTO, None, None, None, schedule=schedule, prediction=prediction, nfe=nfe)


def filled(
    solver: str,
    grid: Grid | None,
    basis: str | None,
    t_start: float | None,
    *,
    schedule: str,
    prediction: str,
    nfe: int,
    clip: float | None = None,
) -> Choice:
    """The choice with what is open, solver "auto" and None, taken from the rule; what is given stays as it is.

    A basis stays open but for the rule's own solver, and so does a start at the schedule's last time. With a grid
    given the start is `default_start`, as `pfdiff.tune` has it. clip: bound on x0, which makes any start sound.
    Raises InputError.
    """
    process = parse_schedule(schedule)
    row = _row(prediction, nfe)
    if (solver, grid, basis, t_start) == (AUTO, None, None, None) and _is_dense(schedule, prediction, nfe):
        start = max(default_start(schedule, prediction, clip), process.first + nfe - 1)
        return Choice(OF_MANY, GRID_OF_MANY, None, min(start, process.last))
    if solver == AUTO:
        if grid is not None:
            solver, stored = _for_grid(grid, process, prediction, nfe)
        else:
            solver, stored = (row.solver, row.basis) if _has_room(process, row.solver, nfe) else (SOLVER, BASIS)
        basis = basis or stored
    if grid is None:
        t_start = _start(process, row.alpha, solver, nfe) if t_start is None else t_start
        grid = "angle" if row.power == 1 else f"angle:power={row.power:g}"
    elif t_start is None and listed(grid) is None:
        t_start = default_start(schedule, prediction, clip)
    points = grid if isinstance(grid, str) else tuple(float(t) for t in grid)
    return Choice(solver, points, basis, None if t_start == process.last else t_start)


def _is_dense(schedule: str, prediction: str, nfe: int) -> bool:
    """Whether so many evaluations come near to the walk over every time, as on a short schedule."""
    process = parse_schedule(schedule)
    times = int(default_start(schedule, prediction) - process.first) + 1 if process.discrete else SHORT + 1
    return prediction == "eps" and times <= SHORT and nfe * MANY >= times


def open_grid(grid: str) -> str:
    """The few-step form of a diffusers scheduler's grid rule: the same spacing, open at the clean end.

    `uniform` and `leading` spend their last evaluation where x is clean, and `leading` starts late besides: on latents
    DDIM's error is 1.4 times that of `trailing` at 4 to 8 evaluations. Rules in sigma stay as they are.
    """
    return "trailing" if grid.partition(":")[0] in ("uniform", "leading") else grid


def _row(prediction: str, nfe: int) -> Row:
    rows = OF_EPS if prediction == "eps" else OF_OTHERS
    return next((row for row in reversed(rows) if nfe >= row.nfe), rows[0])


def _for_grid(grid: Grid, process: Schedule, prediction: str, nfe: int) -> tuple[str, str | None]:
    """(solver, basis) on a grid of the caller's: PFDiff, but for eps-networks, alpha = 0 and lists of N + 1 times."""
    times = listed(grid)
    from_nothing = process.velocity != "flow" and float(process.alpha(process.last)) == 0
    plain = prediction == "eps" or from_nothing or not _has_room(process, PFDIFF, nfe)
    if times is not None:
        plain = len(times) == nfe + 1
    return (SOLVER, BASIS) if plain else (PFDIFF, None)


def _has_room(process: Schedule, solver: str, nfe: int) -> bool:
    """Whether a discrete schedule has a time for every point that the solver walks."""
    return not process.discrete or parse_solver(solver).intervals(nfe) <= process.last - process.first + 1


def _start(process: Schedule, alpha: float, solver: str, nfe: int) -> float:
    """The time of `alpha`; noisier in a short schedule that has fewer times below it than the solver walks."""
    start = time_of_alpha(process, alpha)
    if not process.discrete:
        return start
    method = parse_solver(solver)
    return min(process.last, max(start, process.first + method.intervals(nfe) * method.evaluations))
