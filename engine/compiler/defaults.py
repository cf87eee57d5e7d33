"""The default sampler: solver, grid, basis and start for a network that nobody has tuned, by rule.

What is left open in (solver, grid, basis, t_start) is filled by `filled`, without one network evaluation; `build`,
`tune`, `compare`, `PFDiffScheduler` and the demonstration all ask it. The rule was chosen on 21 networks, see
docs/concepts/defaults.md:

solver  a multistep solver of order 2 that stores x0. It needs no springboard, which at the noisy end lies where x0 =
        (x - sigma eps) / alpha multiplies the error of an eps-network, and it averages the errors of two evaluations.
grid    `angle`: even in arctan(sigma / alpha) to a power that grows with the number of evaluations, so that one rule
        serves all schedules. It is open: no evaluation is spent at the first trained time, where x is clean.
start   where alpha is 0.03, as the noisiest steps of any schedule move x by less than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .grid import Grid, listed
from .schedule import Schedule, parse_schedule
from .solvers import parse_solver
from .start import default_start, time_of_alpha

AUTO = "auto"  # the solver string that stands for the rule's own
SOLVER, BASIS = "ipndm:order=2", "x0"
START_ALPHA = 0.03
# The least NFE of each power of the angle: few evaluations are spread evenly, more of them crowd at the clean end.
POWERS = ((9, 1.5), (5, 1.25), (1, 1.0))


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
) -> Choice:
    """The choice with what is open, solver "auto" and None, taken from the rule; what is given stays as it is.

    A basis stays open but for the rule's own solver, and so does a start at the schedule's last time. With solver and
    grid both given the start is `default_start`, as `pfdiff.tune` has it. Raises InputError.
    """
    process = parse_schedule(schedule)
    if solver == AUTO:
        solver, basis = SOLVER, basis or BASIS
    if grid is None:
        t_start = _start(process, solver, nfe) if t_start is None else t_start
        grid = usual_grid(nfe)
    elif t_start is None and listed(grid) is None:
        t_start = default_start(schedule, prediction)
    points = grid if isinstance(grid, str) else tuple(float(t) for t in grid)
    return Choice(solver, points, basis, None if t_start == process.last else t_start)


def usual_grid(nfe: int) -> str:
    """The rule's grid for so many evaluations, on every schedule."""
    power = next(power for least, power in POWERS if nfe >= least)
    return f"angle:power={power:g}" if power != 1 else "angle"


def open_grid(grid: str) -> str:
    """The few-step form of a diffusers scheduler's grid rule: the same spacing, open at the clean end.

    `uniform` and `leading` spend their last evaluation where x is clean, `leading` starts late besides; on latents
    `trailing` has a tenth of their error at 5 to 8 evaluations. Rules in sigma stay as they are.
    """
    return "trailing" if grid.partition(":")[0] in ("uniform", "leading") else grid


def _start(process: Schedule, solver: str, nfe: int) -> float:
    """The time where alpha is 0.03, later in a short schedule that has fewer times than the solver walks from there."""
    start = time_of_alpha(process, START_ALPHA)
    if not process.discrete:
        return start
    method = parse_solver(solver)
    return min(process.last, max(start, process.first + method.intervals(nfe) * method.evaluations))
