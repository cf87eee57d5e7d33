"""Levenberg-Marquardt over the coefficients of a program's updates, by runs of the network alone.

    minimise  sum over training seeds |clip(sample(W, w)) - clip(reference)|^2 + (0.1 |sample - clip(sample)|)^2

over every W_n[j, i] of live buffers and every w_n[j]: the solver's own terms, and the network's current input s_0 for
those that did not use it; and over the evaluation times, by whole steps where the schedule has integer times. Buffers
and evaluations stay as they are. The Jacobian comes from forward differences (jacobian.py); the last row, in which the
sample is linear, is solved by least squares after every step.

Training stops when the validation seeds gain nothing, and gives the program that was best on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from ...engine.compiler.basis import convert, velocity
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s, parse_schedule
from ...engine.errors import InputError
from ..criteria.error import ErrorCriterion
from ..sampling.budget import BudgetSpentError
from ..sampling.pool import Floats, Rows
from .jacobian import Line, Parameter, limited, moved

CHUNK_BYTES = 1 << 28  # of Jacobian held at once
DAMPING = (1e-3, 1e-9, 1e4)  # first, least, most
LADDER = 8  # between the dampings that are tried
PATIENCE = 2  # steps without gain on the validation seeds
GAIN = 5e-3  # less than this part of the training error gained in a step is the end
OUTSIDE = 0.1  # weight of what is outside the data's range, where clipping hides it from the error
OWN_BASIS = {"eps": "eps", "x0": "x0", "v": "v", "flow": "v", "edm": "x0", "consistency": "x0"}


@final
@dataclass(frozen=True, eq=False)
class Iteration:
    """Where the search stands: the program, the damping for the next step, and RMS errors so far, the start first."""

    program: Program
    damping: float
    training: tuple[float, ...]
    validation: tuple[float, ...]

    def to_data(self) -> dict[str, Any]:
        return {**vars(self), "program": self.program.to_dict()}

    @staticmethod
    def from_data(data: Any) -> Iteration:
        damping, training, validation = float(data["damping"]), data["training"], data["validation"]
        errors = tuple(map(float, training)), tuple(map(float, validation))
        return Iteration(Program.from_dict(data["program"]), damping, *errors)


@final
@dataclass(frozen=True, eq=False)
class Refinement:
    """One program polished on the pool's rows `training`, watched on the rows `validation`."""

    criterion: ErrorCriterion
    training: Rows
    validation: Rows

    def run(self, start: Program, steps: int, tell: Callable[[Iteration], None] | None = None) -> Iteration:
        """At most `steps` steps from `start`; the one that is best on the validation seeds.

        Each is kept in the journal, and an interrupted run goes on behind the last one. When the budget is spent, the
        best so far.
        """
        criterion = self.criterion
        key = f"refine 3 {start.digest} {criterion.key(self.training)} {criterion.key(self.validation)}"
        here = best = Iteration(start, DAMPING[0], (), ())
        try:
            criterion.budget.charge(start.nfe * len(self.training))
            samples = criterion.pool.sample(start, self.training)
            training = float(np.sqrt(self._loss(samples.astype(np.float64), criterion.targets[self.training])))
            here = best = Iteration(start, DAMPING[0], (training,), (self._error(start, self.validation),))
            for count in range(steps):
                after = self._known(f"{key} {count}") or self._iterate(here, f"{key} {count}")
                if after is None:
                    break
                gained = 1 - after.training[-1] / here.training[-1]
                here = after
                if here.validation[-1] < best.validation[-1]:
                    best = here
                if tell:
                    tell(here)
                if gained < GAIN or len(here.validation) - len(best.validation) >= PATIENCE:
                    break
        except BudgetSpentError:
            pass
        return best

    def _known(self, key: str) -> Iteration | None:
        held = self.criterion.journal.get(key) if self.criterion.journal else None
        if held is None:
            return None
        try:
            spent, found = int(held["evaluations"]), Iteration.from_data(held)
        except (InputError, KeyError, TypeError, ValueError, OverflowError):  # damaged
            return None
        self.criterion.budget.charge(spent, cached=True)
        return found

    def _iterate(self, here: Iteration, key: str) -> Iteration | None:
        """One step that lowers the training error, None when none does.

        The Jacobian costs ten times what a run does, so three dampings are tried and the best is taken.
        """
        spent = self.criterion.budget.spent
        parameters, normal, slope = self._jacobian(here.program)
        best, damping = (here.program, here.training[-1]), here.damping
        dampings = [max(DAMPING[1], damping * factor) for factor in (1 / LADDER, 1, LADDER)]
        while best[0] is here.program and dampings[0] <= DAMPING[2]:
            for one in dampings:
                for move in _moves(here.program, parameters, normal, slope, one):
                    found = self._with_last_row(moved(here.program, parameters, move))
                    if found is not None and found[1] < best[1]:
                        best, damping = found, one
            dampings = [LADDER * dampings[-1]]
        if best[0] is here.program:
            return None
        program, error = best
        validation = self._error(program, self.validation)
        after = Iteration(program, damping, (*here.training, error), (*here.validation, validation))
        if self.criterion.journal:
            self.criterion.journal.put(key, {**after.to_data(), "evaluations": self.criterion.budget.spent - spent})
        return after

    def _error(self, program: Program, rows: Rows) -> float:
        return float(np.sqrt(self.criterion.square(program, rows) / len(rows)))

    # The Jacobian, as the normal equations.
    def _jacobian(self, program: Program) -> tuple[list[Parameter], Float64s, Float64s]:
        """(parameters, J^T J, J^T r) over the training seeds, accumulated in float64."""
        parameters: list[Parameter] = []
        count = program.nfe * (program.buffers + 1) * program.buffers
        most = max(1, CHUNK_BYTES // (8 * count * self.criterion.targets.shape[1]))
        normal, slope = np.zeros(0), np.zeros(0)
        for first in range(0, len(self.training), most):
            rows = self.training[first : first + most]
            line = Line(self.criterion, program, rows)
            parameters = parameters or line.parameters()
            weight, residual = self._residual(line.states[-1][0], self.criterion.targets[rows])
            columns = np.stack([line.column(one) * weight for one in parameters])
            columns = columns.reshape(len(columns), -1).astype(np.float64)
            if not first:
                normal, slope = np.zeros((len(columns), len(columns))), np.zeros(len(columns))
            normal += columns @ columns.T
            slope += columns @ residual.reshape(-1)
        return parameters, normal, slope

    def _residual(self, samples: np.ndarray, targets: Floats) -> tuple[Float64s, Float64s]:
        """(weight of each element, residual): sample - target inside the data's range, what is beyond it outside.

        An element outside has the error that its clipped value has, whatever it is; the weight keeps it near.
        """
        low, high = self.criterion.data_range
        beyond = samples - np.clip(samples, low, high)
        weight = np.where(beyond == 0, 1.0, OUTSIDE)
        return weight, np.where(beyond == 0, samples.astype(np.float64) - targets, OUTSIDE * beyond)

    def _loss(self, samples: Float64s, targets: Floats) -> float:
        """Mean squared error of the clipped samples, and a little for what was clipped."""
        low, high = self.criterion.data_range
        clipped = np.clip(samples, low, high)
        return float(np.mean((clipped - targets) ** 2 + (OUTSIDE * (samples - clipped)) ** 2))

    def _with_last_row(self, program: Program) -> tuple[Program, float] | None:
        """The program with its last row solved by least squares on the training seeds, and its error there."""
        line = Line(self.criterion, program, self.training)
        last = np.concatenate([line.states[-2], line.answers[-1][None]]).reshape(program.buffers + 1, -1)
        vectors = last.astype(np.float64)
        row = np.append(program.W[-1, 0], program.w[-1, 0])
        targets = self.criterion.targets[self.training].reshape(-1)

        # Which elements are clipped changes with the row: solved again, while that helps.
        best = self._loss(row @ vectors, targets)
        if not np.isfinite(best):
            return None
        for _ in range(4):
            weight, residual = self._residual(row @ vectors, targets)
            weighted = vectors * weight
            fresh = row + _solve(weighted @ weighted.T, weighted @ residual, 1e-9)
            found = self._loss(fresh @ vectors, targets)
            if not found < best:
                break
            row, best = fresh, found
        W, w = program.W.copy(), program.w.copy()
        W[-1, 0], w[-1, 0] = row[:-1], row[-1]
        return replace(program, W=W, w=w), float(np.sqrt(best))


def _moves(
    program: Program, parameters: list[Parameter], normal: Float64s, slope: Float64s, damping: float
) -> list[Float64s]:
    """The damped Gauss-Newton move; where times are integers they are rounded and the rest is solved around them,
    and again with the times as they are."""
    move = _solve(normal, slope, damping)
    timed = np.array([one.j < 0 for one in parameters])
    if not timed.any() or not parse_schedule(program.schedule).discrete:
        return [move]
    moves = []
    for scale in (1, 0):
        whole = [limited(one, scale * by, True) for one, by in zip(parameters, move, strict=True) if one.j < 0]
        around = move.copy()
        around[timed] = whole
        rest = slope[~timed] + normal[np.ix_(~timed, timed)] @ around[timed]
        around[~timed] = _solve(normal[np.ix_(~timed, ~timed)], rest, damping)
        moves.append(around)
        if not np.any(whole):
            break
    return moves


def _solve(normal: Float64s, slope: Float64s, damping: float) -> Float64s:
    """The damped Gauss-Newton move; directions that change nothing stay where they are."""
    scale = np.sqrt(np.diag(normal)) + 1e-30
    eigenvalues, vectors = np.linalg.eigh(normal / np.outer(scale, scale))
    return -(vectors @ ((vectors.T @ (slope / scale)) / (np.maximum(eigenvalues, 0) + damping))) / scale


def finished(program: Program, solver: str) -> Program:
    """The program with its dense table computed anew from W and w, and a name that says what it is."""
    try:
        return replace(program, solver=f"{solver} refined", table=dense_table(program, program.basis))
    except InputError:  # at alpha = 0 not every basis is determined by the network's answer
        basis = OWN_BASIS[program.prediction]
        return replace(program, solver=f"{solver} refined", basis=basis, table=dense_table(program, basis))


def dense_table(program: Program, basis: str) -> Float64s:
    """The table [N+1, N+1] that a program's updates mean, columns in `basis`: trace.py's lowering, undone.

    Raises InputError where the answers in `basis` do not determine the network's.
    """
    program.check_deterministic("its dense table in another basis")
    process = parse_schedule(program.schedule)
    stored = velocity(basis, process)
    given = program.prediction if program.clip is None else "x0"
    unit = np.eye(program.nfe + 1)
    states = program.init[:, None] * unit[0]
    rows = []
    for n, t in enumerate(program.times):
        p, q = convert(given, stored, float(t), process, program.sigma_data)
        z = p * states[0] + q * unit[n + 1]
        rows.append(states[0])
        states = program.W[n] @ states + program.w[n][:, None] * z
    return np.stack([*rows, states[0]])
