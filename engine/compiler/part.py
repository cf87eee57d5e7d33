"""The last part of a program's way as a program of its own: where a sample starts from a picture, not from noise.

A way is the points t_0 > ... > t_M that a solver walks. Point i stands at i / M of it, and between two points it is
read on the straight line between their times. A strength s leaves out the first 1 - s, and the points that are left
are drawn apart to as many as there were.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .compile import compile as compile_program
from .grid import make_grid
from .program import Program
from .schedule import Float64s, parse_schedule
from .solvers import parse_solver
from .solvers.stochastic.analytic import Analytic

ROUNDING = 1e-9  # of the first time: nearer than that to the last one counts as there


def last_part(program: Program, strength: float, *, whole: bool = False) -> Program:
    """The program of the last `strength` (0 to 1) of the way of `program`.

    It has as many evaluations as `program`, on as many points. With `whole` it has as many of them as diffusers'
    pipelines do, on the last points themselves: int(nfe strength), of flows nfe - int(nfe - nfe strength). Raises
    InputError when discrete times do not suffice, and for Analytic-DPM, whose variances are those of its own steps.
    """
    schedule, solver = parse_schedule(program.schedule), parse_solver(program.solver)
    if isinstance(solver, Analytic) and solver.x0_var:
        name = program.solver.partition("x0_var")[0].rstrip(",:")
        raise InputError(
            f"{name} has variances of its own steps and starts from no picture; take a solver such as ddpm"
        )
    points = make_grid(
        program.grid, schedule, solver.intervals(program.nfe), program.t_start, program.end, solver.evaluations
    )
    nfe = _counted(program.nfe, strength, flow=schedule.velocity == "flow") if whole else program.nfe
    if nfe < 1:
        raise InputError(
            f"strength {strength:g} of {program.nfe} evaluations is none; give more of either, or leave "
            "strength_counts out"
        )
    if whole:
        kept = points[solver.intervals(program.nfe) - solver.intervals(nfe) :]
        kept = np.append(np.maximum(kept[:-1], schedule.first), kept[-1])  # rules miss it by a rounding
    else:
        kept = _stretched(points, strength, schedule.first)
        if schedule.discrete:
            kept = _apart(kept, points[-1], solver.evaluations)
    return compile_program(
        program.solver,
        program.schedule,
        nfe,
        grid=tuple(float(t) for t in kept),
        basis=program.basis,
        prediction=program.prediction,
        clip=program.clip,
        sigma_data=program.sigma_data,
    )


def _counted(nfe: int, strength: float, *, flow: bool) -> int:
    """Evaluations of diffusers' pipelines: rounded down on betas, up on flows (their `get_timesteps`)."""
    share = nfe * strength  # a float that misses whole numbers as theirs does
    return nfe - int(max(nfe - share, 0)) if flow else min(int(share), nfe)


def _stretched(points: Float64s, strength: float, first: float) -> Float64s:
    """As many points on the last `strength` of the way. `first`: the least time at which a network is evaluated."""
    count = len(points)
    clean = points[-1] < first  # a point beyond all times: the way is read up to the first time, the point follows
    to_first = clean and points[-2] - first > ROUNDING * points[0]
    knots = np.append(points[:-1], first) if to_first else points[:-1] if clean else points
    end = len(knots) - 1
    places = np.linspace((1 - strength) * end, end, count - (clean and not to_first))
    times = np.interp(places, np.arange(end + 1), knots)
    times = np.maximum(times, first) if clean else times  # as above
    return np.append(times[: count - 1], points[-1]) if clean else times


def _apart(points: Float64s, last: float, gap: int) -> Float64s:
    """Integer times that fall to `last` by at least `gap`: rounded, and moved up where they would be nearer."""
    times = np.round(points)
    times[-1] = last
    for place in range(len(times) - 2, -1, -1):
        times[place] = max(times[place], times[place + 1] + (gap if times[place + 1] >= 0 else 1))
    return times
