"""`pfdiff.compile`: solver, schedule and grid become a Program."""

from __future__ import annotations

import math

import numpy as np

from ..errors import InputError, shown
from .basis import BASES, PRECONDITIONED, PREDICTIONS, convert, edm_preconditioning, velocity
from .defaults import AUTO, filled
from .grid import Grid, make_grid
from .lower import lower
from .own_eps import fold_own_eps
from .program import MOST_NFE, Program
from .schedule import Float64s, Schedule, parse_schedule
from .solvers import parse_solver
from .solvers.ddim import OWN, Ddim
from .trace import trace


def compile(
    solver: str,
    schedule: str,
    nfe: int,
    grid: Grid | None = None,
    basis: str | None = None,
    prediction: str = "eps",
    clip: float | None = None,
    t_start: float | None = None,
    end: str | float = "clean",
    sigma_data: float = 0.5,
) -> Program:
    """The program of a solver for one NFE.

    solver, schedule: strings, see engine/compiler/solvers and engine/compiler/schedule.py; solver "auto" is the rule of
    engine/compiler/defaults.py, for grid, basis and t_start too where they are None. nfe: network evaluations, at
    least 1. grid: a rule or the times, see engine/compiler/grid.py; uniform by default. basis: eps, x0 or v, what the
    solver stores; by default x0 for PFDiff with noise, v on flow schedules, otherwise eps. Solvers with a
    parameterisation of their own (DPM-Solver: eps, DPM-Solver++: x0) convert to it, so basis then changes nothing but
    the table's columns.
    prediction: eps, x0, v, flow, edm or consistency, what the network returns. clip: bound on |x0|, 1 for data in
    [-1, 1]. t_start: first time. end: clean, first or a time. sigma_data: of `edm` and `consistency`.
    Raises InputError.
    """
    check_options(nfe, basis, prediction, clip, sigma_data)
    nfe = int(nfe)
    if solver == AUTO:
        chosen = filled(AUTO, grid, basis, t_start, schedule=schedule, prediction=prediction, nfe=nfe, clip=clip)
        solver, grid, basis, t_start = chosen.solver, chosen.grid, chosen.basis, chosen.t_start
    grid = "uniform" if grid is None else grid
    process, method = parse_schedule(schedule), parse_solver(solver)
    basis = basis or method.default_basis or ("v" if process.velocity == "flow" else "eps")
    points = make_grid(grid, process, method.intervals(nfe), t_start, end, method.evaluations)
    times, table, draws = trace(method, nfe, points, process, basis)
    return program_of(
        lower(table, draws),
        process,
        solver=str(method),
        schedule=schedule,
        grid=grid if isinstance(grid, str) else tuple(float(t) for t in grid),
        basis=basis,
        prediction=prediction,
        clip=None if clip is None else float(clip),
        t_start=None if t_start is None else float(t_start),
        end=end if isinstance(end, str) else float(end),
        sigma_data=float(sigma_data),
        times=times,
        table=table,
        own_eps=isinstance(method, Ddim) and method.eps == OWN,
    )


def program_of(
    lowered: tuple[Float64s, Float64s, Float64s, Float64s],
    process: Schedule,
    *,
    solver: str,
    schedule: str,
    grid: str | tuple[float, ...],
    basis: str,
    prediction: str,
    clip: float | None,
    t_start: float | None,
    end: str | float,
    sigma_data: float,
    times: Float64s,
    table: Float64s,
    own_eps: bool = False,
) -> Program:
    """The program of a lowered table asked at `times` [N]; own_eps: a clipped x0 leaves the network's eps as it is."""
    init, W, w, V = lowered
    if clip is not None and own_eps:
        p, q, U = fold_own_eps(W, w, times, basis, prediction, process, sigma_data)
    else:
        p, q = fold(W, w, times, basis, prediction, clip, process, sigma_data)
        U = np.zeros_like(w)
    c_in, network_times = network_inputs(times, prediction, process, sigma_data)
    return Program(
        solver=solver,
        schedule=schedule,
        grid=grid,
        basis=basis,
        prediction=prediction,
        clip=clip,
        t_start=t_start,
        end=end,
        sigma_data=sigma_data,
        times=times,
        network_times=network_times,
        c_in=c_in,
        table=table,
        init=init,
        p=p,
        q=q,
        W=W,
        w=w,
        V=V,
        U=U,
    )


def check_options(nfe: object, basis: str | None, prediction: str, clip: float | None, sigma_data: float) -> None:
    if isinstance(nfe, bool) or not isinstance(nfe, int | np.integer) or nfe < 1:
        raise InputError(f"NFE must be a whole number of at least 1, got {shown(nfe)}")
    if nfe > MOST_NFE:
        raise InputError(f"NFE {shown(int(nfe))}, expected at most {MOST_NFE}")
    if prediction not in PREDICTIONS:
        raise InputError(f"unknown prediction {shown(prediction)}; known: {', '.join(PREDICTIONS)}")
    if basis is not None and basis not in BASES:
        raise InputError(f"unknown basis {shown(basis)}; known: {', '.join(BASES)}")
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        raise InputError(f"clip must be above 0, got {clip:g}; data in [-1, 1] has clip 1")
    if not (sigma_data > 0 and math.isfinite(sigma_data)):
        raise InputError(f"sigma_data must be above 0, got {sigma_data:g}")


def fold(
    W: Float64s,
    w: Float64s,
    times: Float64s,
    basis: str,
    prediction: str,
    clip: float | None,
    schedule: Schedule,
    sigma_data: float,
) -> tuple[Float64s, Float64s]:
    """(p [N], q [N]) of the clipped x0; W and w, in place, then take the network's output or that x0 in place of d.

    d_n = from_x y_n + from_z z_n, where z is the network's output or, with clip, x0 = p y + q out.
    """
    p, q = np.zeros(len(times)), np.ones(len(times))
    stored, given = velocity(basis, schedule), prediction if clip is None else "x0"
    for n, t in enumerate(times):
        if clip is not None:
            p[n], q[n] = convert("x0", prediction, t, schedule, sigma_data)
        from_x, from_z = convert(stored, given, t, schedule, sigma_data)
        W[n, :, 0] += w[n] * from_x
        w[n] *= from_z
    return p, q


def network_inputs(
    times: Float64s, prediction: str, schedule: Schedule, sigma_data: float
) -> tuple[Float64s, Float64s]:
    """(c_in [N], network times [N]): 1 and the schedule's times, but for EDM's preconditioning."""
    c_in, network_times = np.ones(len(times)), times.copy()
    if prediction in PRECONDITIONED:
        for n, t in enumerate(times):
            c_in[n], _, _, network_times[n] = edm_preconditioning(float(schedule.sigma(t)), sigma_data)
    return c_in, network_times
