"""A sampler compiled to numbers: what every backend, kernel and file format of this project executes.

    s_j = init_j * noise
    for n = 0 ... N-1:
        out = network(c_in_n * s_0, network_time_n)
        z   = out                                           without clip
            = clamp(p_n s_0 + q_n out, -clip, +clip)        with clip: the x0 that the network means
        s_j <- sum_i W_n[j, i] s_i + w_n[j] z               all j at once
    sample = s_0

Conversions between what the network predicts and what the solver stores are folded into W and w in float64: the
network's own output is combined, so v-networks keep their accuracy where alpha is small. The dense table stays
beside it in the solver's basis, to be read, hashed and tested.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np

from ..errors import InputError
from .basis import BASES, PREDICTIONS, convert, edm_preconditioning
from .defaults import AUTO, filled
from .grid import Grid, make_grid
from .schedule import Array, parse_schedule
from .solvers import parse_solver
from .trace import lower, trace, velocity

ARRAYS = {"times": 1, "network_times": 1, "c_in": 1, "table": 2, "init": 1, "p": 1, "q": 1, "W": 3, "w": 2}


@final
@dataclass(frozen=True, eq=False)
class Program:
    """One sampler for one NFE; all arrays float64. N = nfe, B = buffers.

    times [N]: the schedule's time of each evaluation. network_times [N]: what the network is fed, ln(sigma)/4 for
    `edm`. c_in [N]: factor of the network's input. table [N+1, N+1]: rows y_0 ... y_N-1, sample; columns noise,
    d_0 ... d_N-1 in `basis`. init [B], p [N], q [N], W [N, B, B], w [N, B]: see the module.
    """

    solver: str
    schedule: str
    grid: str | tuple[float, ...]
    basis: str
    prediction: str
    clip: float | None
    t_start: float | None
    end: str | float
    sigma_data: float
    times: Array
    network_times: Array
    c_in: Array
    table: Array
    init: Array
    p: Array
    q: Array
    W: Array
    w: Array

    def __post_init__(self) -> None:
        for name in ARRAYS:
            getattr(self, name).setflags(write=False)

    @property
    def nfe(self) -> int:
        return len(self.times)

    @property
    def buffers(self) -> int:
        return len(self.init)

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON form, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def evaluate(self, network: Callable[[Any, float], Any], noise: Any) -> Any:
        """The reference execution, in the type and dtype of `noise` (NumPy array or torch tensor, any shape).

        network(x_t, t) -> prediction of the same shape; t is an int on discrete schedules, else a float. For `edm` it
        is the raw F, called with c_in x and c_noise.
        """
        own = self.schedule.startswith("alphas:")  # discrete, wherever its numbers are
        whole = self.prediction != "edm" and (own or parse_schedule(self.schedule).discrete)
        states = [float(c) * noise for c in self.init]
        for n in range(self.nfe):
            t = float(self.network_times[n])
            out = network(float(self.c_in[n]) * states[0], int(t) if whole else t)
            if self.clip is not None:
                out = (float(self.p[n]) * states[0] + float(self.q[n]) * out).clip(-self.clip, self.clip)
            states = [self._combine(states, out, n, j) for j in range(self.buffers)]
        return states[0]

    def _combine(self, states: Sequence[Any], out: Any, n: int, j: int) -> Any:
        total = float(self.w[n, j]) * out
        for i in np.flatnonzero(self.W[n, j]).tolist():
            total = total + float(self.W[n, j, i]) * states[i]
        return total

    def to_json(self) -> str:
        """Every field; floats in the shortest form that reads back exactly."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: values[name].tolist() for name in ARRAYS}
        return json.dumps({"nfe": self.nfe, "buffers": self.buffers, **values}, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Program:
        """Inverse of `to_json`. Raises InputError when a field is missing, of a wrong type or shape."""
        try:
            data = json.loads(text)
            nfe, buffers = int(data["nfe"]), int(data["buffers"])
            values = {f.name: data[f.name] for f in fields(Program)}
            values |= {name: np.asarray(values[name], np.float64) for name in ARRAYS}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a program: {type(error).__name__} {error}; expected the output of to_json") from None
        shapes = {1: (nfe,), 2: (nfe, buffers), 3: (nfe, buffers, buffers)}
        expected = {name: shapes[rank] for name, rank in ARRAYS.items()}
        expected |= {"table": (nfe + 1, nfe + 1), "init": (buffers,)}
        for name, shape in expected.items():
            if values[name].shape != shape:
                raise InputError(f"not a program: {name} has shape {values[name].shape}, expected {shape}")
            if not np.all(np.isfinite(values[name])):
                raise InputError(f"not a program: {name} has values that are not finite")
        if isinstance(values["grid"], list):
            values["grid"] = tuple(values["grid"])
        return Program(**values)


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
    solver stores; by default v on flow schedules, otherwise eps. Solvers with a parameterisation of their own
    (DPM-Solver: eps, DPM-Solver++: x0) convert to it, so basis then changes nothing but the table's columns.
    prediction: eps, x0, v, flow or edm, what the network returns. clip: bound on |x0|, 1 for data in [-1, 1]. t_start:
    first time. end: clean, first or a time. sigma_data: of `edm`.
    Raises InputError.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int | np.integer) or nfe < 1:
        raise InputError(f"NFE must be a whole number of at least 1, got {nfe!r}")
    if prediction not in PREDICTIONS:
        raise InputError(f"unknown prediction {prediction!r}; known: {', '.join(PREDICTIONS)}")
    if basis is not None and basis not in BASES:
        raise InputError(f"unknown basis {basis!r}; known: {', '.join(BASES)}")
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        raise InputError(f"clip must be above 0, got {clip:g}; data in [-1, 1] has clip 1")
    if not (sigma_data > 0 and math.isfinite(sigma_data)):
        raise InputError(f"sigma_data must be above 0, got {sigma_data:g}")
    nfe = int(nfe)
    if solver == AUTO:
        chosen = filled(AUTO, grid, basis, t_start, schedule=schedule, prediction=prediction, nfe=nfe)
        solver, grid, basis, t_start = chosen.solver, chosen.grid, chosen.basis, chosen.t_start
    grid = "uniform" if grid is None else grid
    process, method = parse_schedule(schedule), parse_solver(solver)
    basis = basis or ("v" if process.velocity == "flow" else "eps")
    points = make_grid(grid, process, method.intervals(nfe), t_start, end, method.evaluations)
    times, table = trace(method, nfe, points, process, basis)
    init, W, w = lower(table)

    # Fold: d = p y + q z with z the network's output, or the clipped x0.
    p, q, c_in, network_times = np.zeros(nfe), np.ones(nfe), np.ones(nfe), times.copy()
    for n, t in enumerate(times):
        stored, given = velocity(basis, process), prediction
        if clip is not None:
            p[n], q[n] = convert("x0", prediction, t, process, sigma_data)
            given = "x0"
        from_x, from_z = convert(stored, given, t, process, sigma_data)
        W[n, :, 0] += w[n] * from_x
        w[n] *= from_z
        if prediction == "edm":
            c_in[n], _, _, network_times[n] = edm_preconditioning(float(process.sigma(t)), sigma_data)
    return Program(
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
        network_times=network_times,
        c_in=c_in,
        table=table,
        init=init,
        p=p,
        q=q,
        W=W,
        w=w,
    )
