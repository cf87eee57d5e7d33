"""Levenberg-Marquardt over the coefficients of a program's updates, by runs of the network alone.

    minimise  sum over training seeds |clip(sample(W, w)) - clip(reference)|^2

over every W_n[j, i] of live buffers and every w_n[j]: the solver's own terms, and the network's current input s_0 for
those that did not use it. On continuous schedules over the evaluation times too. Buffers and evaluations stay as they
are. A column of the Jacobian is a forward difference: state j is moved along state i (or along the answer) after
update n, and only evaluations after n are run again. The last update moves the sample itself, so its columns cost
nothing, and its row is solved by linear least squares after every step.

Training stops when the validation seeds gain nothing, and gives the program that was best on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from .basis import convert, edm_preconditioning
from .errors import InputError
from .pool import BudgetSpentError, Floats, Rows, update
from .program import Program
from .schedule import Array, parse_schedule
from .search import Judge
from .trace import velocity

STEP = 0.01  # of a difference, in root mean square of the state it moves: float32 networks are exact to 1e-6
TIME_STEP = 0.02  # likewise, in parts of the distance to the next time
FARTHEST = 0.4  # of that distance, that a time may move at once
CHUNK_BYTES = 1 << 28  # of Jacobian held at once
DAMPING = (1e-4, 1e-9, 1e4)  # first, least, most
PATIENCE = 3  # steps without gain on the validation seeds
GAIN = 2e-3  # less than this part of the training error gained in a step is the end
OWN_BASIS = {"eps": "eps", "x0": "x0", "v": "v", "flow": "v", "edm": "x0"}


@final
@dataclass(frozen=True, eq=False)
class Parameter:
    """One thing that may be moved, and by how much a unit of it moves: row j of update n, or the time of evaluation n.

    W [B], w: the change of W_n[j] and w_n[j] that moves state j by a root mean square of 1. time: of the time.
    """

    n: int
    j: int
    W: Array
    w: float
    time: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class Step:
    """Where the search stands: the program, the damping for the next step, and RMS errors so far, the start first."""

    program: Program
    damping: float
    training: tuple[float, ...]
    validation: tuple[float, ...]

    def to_data(self) -> dict[str, Any]:
        return {
            "program": json.loads(self.program.to_json()),
            "damping": self.damping,
            "training": self.training,
            "validation": self.validation,
        }

    @staticmethod
    def from_data(data: Any) -> Step:
        program = Program.from_json(json.dumps(data["program"]))
        return Step(program, data["damping"], tuple(data["training"]), tuple(data["validation"]))


@final
class Refinement:
    """One program polished on the pool's rows `training`, watched on the rows `validation`."""

    def __init__(self, judge: Judge, training: Rows, validation: Rows) -> None:
        self.judge = judge
        self.training = training
        self.validation = validation
        self._journal = judge.journal

    def run(self, start: Program, steps: int, tell: Callable[[Step], None] | None = None) -> Step:
        """At most `steps` steps from `start`; the one that is best on the validation seeds.

        Each is kept in the journal, and an interrupted run goes on behind the last one. When the budget is spent, the
        best so far.
        """
        judge = self.judge
        key = f"refine {start.digest} {judge.key(self.training)} {judge.key(self.validation)}"
        here = best = Step(start, DAMPING[0], (), ())
        try:
            errors = self._error(start, self.training), self._error(start, self.validation)
            here = best = Step(start, DAMPING[0], (errors[0],), (errors[1],))
            for count in range(steps):
                after = self._known(f"{key} {count}") or self._step(here, f"{key} {count}")
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

    def _known(self, key: str) -> Step | None:
        held = self._journal.get(key) if self._journal else None
        if held is None:
            return None
        self.judge.budget.charge(held["evaluations"], cached=True)
        return Step.from_data(held)

    def _step(self, here: Step, key: str) -> Step | None:
        """One step that lowers the training error, None when none does."""
        spent = self.judge.budget.spent
        parameters, normal, slope = self._jacobian(here.program)
        damping = here.damping
        while damping <= DAMPING[2]:
            move = _solve(normal, slope, damping)
            trial = self._with_last_row(moved(here.program, parameters, move))
            if trial is not None and trial[1] < here.training[-1]:
                program, error = trial
                validation = self._error(program, self.validation)
                least = max(DAMPING[1], damping / 5)
                after = Step(program, least, (*here.training, error), (*here.validation, validation))
                if self._journal:
                    evaluations = self.judge.budget.spent - spent
                    self._journal.put(key, {**after.to_data(), "evaluations": evaluations})
                return after
            damping *= 6
        return None

    def _error(self, program: Program, rows: Rows) -> float:
        return float(np.sqrt(self.judge.square(program, rows) / len(rows)))

    # The Jacobian, as the normal equations.
    def _jacobian(self, program: Program) -> tuple[list[Parameter], Array, Array]:
        """(parameters, J^T J, J^T r) over the training seeds, accumulated in float64."""
        parameters: list[Parameter] = []
        count = program.nfe * (program.buffers + 1) * program.buffers
        most = max(1, CHUNK_BYTES // (8 * count * self.judge.targets.shape[1]))
        normal, slope = np.zeros(0), np.zeros(0)
        for first in range(0, len(self.training), most):
            rows = self.training[first : first + most]
            line = Line(self.judge, program, rows)
            parameters = parameters or line.parameters()
            inside, residual = self._residual(line.states[-1][0], rows)
            columns = np.stack([line.column(one) * inside for one in parameters])
            columns = columns.reshape(len(columns), -1).astype(np.float64)
            if not first:
                normal, slope = np.zeros((len(columns), len(columns))), np.zeros(len(columns))
            normal += columns @ columns.T
            slope += columns @ residual.reshape(-1)
        return parameters, normal, slope

    def _residual(self, samples: Floats, rows: Rows) -> tuple[np.ndarray, Array]:
        """(where the sample is inside the data's range, clip(sample) - clip(reference))."""
        low, high = self.judge.data_range
        inside = (samples > low) & (samples < high)
        return inside, np.clip(samples, low, high).astype(np.float64) - self.judge.targets[rows]

    def _with_last_row(self, program: Program) -> tuple[Program, float] | None:
        """The program with its last row solved by least squares on the training seeds, and its RMS there."""
        line = Line(self.judge, program, self.training)
        last = np.concatenate([line.states[-2], line.answers[-1][None]]).reshape(program.buffers + 1, -1)
        vectors = last.astype(np.float64)
        row = np.append(program.W[-1, 0], program.w[-1, 0])
        targets = self.judge.targets[self.training].reshape(-1)

        def error(row: Array) -> float:
            return float(np.mean((np.clip(row @ vectors, *self.judge.data_range) - targets) ** 2))

        # Clipped elements neither pull nor push: solved again with the new set, while that helps.
        best = error(row)
        if not np.isfinite(best):
            return None
        for _ in range(4):
            samples = row @ vectors
            low, high = self.judge.data_range
            free = vectors * ((samples > low) & (samples < high))
            residual = np.clip(samples, low, high) - targets
            fresh = row + _solve(free @ free.T, free @ residual, 1e-9)
            found = error(fresh)
            if not found < best:
                break
            row, best = fresh, found
        W, w = program.W.copy(), program.w.copy()
        W[-1, 0], w[-1, 0] = row[:-1], row[-1]
        return replace(program, W=W, w=w), float(np.sqrt(best))


@final
class Line:
    """One run of a program with everything kept: states[n] before evaluation n, answers[n]; and runs beside it."""

    def __init__(self, judge: Judge, program: Program, rows: Rows) -> None:
        self._pool, self._budget = judge.pool, judge.budget
        self.program = program
        self.rows = rows
        self.states = [self._pool.start(program, rows)]
        self.answers: list[Floats] = []
        for n in range(program.nfe):
            self.answers.append(self._answer(n, self.states[n][0]))
            self.states.append(update(program.W[n], program.w[n], self.states[n], self.answers[n]))

    def _answer(self, n: int, state: Floats, program: Program | None = None) -> Floats:
        self._budget.charge(len(self.rows))
        return self._pool.answer(program or self.program, n, state, self.rows)

    def parameters(self) -> list[Parameter]:
        """Every change of the program that is not another one in disguise.

        Row 0 makes the network's next input: all its coefficients count. A state j that is only carried along may be
        mixed with the others by update n and unmixed by update n+1, and nothing has changed; so of its row only what
        the rows of W_n do not span is moved. That leaves 2 B parameters an update in place of B (B + 1).
        """
        program, found = self.program, []
        last = program.nfe - 1
        for n in range(program.nfe):
            sources = self._sources(n)
            lengths = np.array([_length(self._direction(n, source)) for source in sources])
            rows = np.hstack([program.W[n], program.w[n][:, None]])
            if n == 0:  # every state is a multiple of the noise
                rows[:, 0] = program.W[0] @ program.init / program.init[0]
            for j in [0] if n == last else self._read_after(n):
                scaled = rows[:, sources] * lengths
                free = np.eye(len(sources)) if j == 0 else _complement(scaled)
                found += [self._parameter(n, j, sources, direction / lengths) for direction in free]
        nothing = np.zeros(program.buffers)
        return found + [Parameter(n, -1, nothing, 0.0, gap) for n, gap in enumerate(time_gaps(program)) if gap > 0]

    def _sources(self, n: int) -> list[int]:
        """What update n may combine: states that are not empty (at first all are multiples of s_0), the answer."""
        states = [0] if n == 0 else [i for i in range(self.program.buffers) if _length(self.states[n][i]) > 1e-6]
        return [*states, self.program.buffers]

    def _read_after(self, n: int) -> list[int]:
        return [j for j in range(self.program.buffers) if j == 0 or self.program.W[n + 1, :, j].any()]

    def _parameter(self, n: int, j: int, sources: list[int], weights: Array) -> Parameter:
        field = sum(np.float32(weight) * self._direction(n, i) for i, weight in zip(sources, weights, strict=True))
        row = np.zeros(self.program.buffers + 1)
        row[sources] = weights / max(_length(np.asarray(field)), 1e-6)
        return Parameter(n, j, row[:-1], float(row[-1]))

    def _direction(self, n: int, i: int) -> Floats:
        return self.answers[n] if i == self.program.buffers else self.states[n][i]

    def column(self, one: Parameter) -> Floats:
        """d sample / d parameter, for the parameter counted in its unit."""
        program, n = self.program, one.n
        if one.j < 0:
            # Towards the clean end, but from the last time that the network knows.
            inside = program.times[n] - TIME_STEP * one.time >= parse_schedule(program.schedule).first
            step = -TIME_STEP if inside else TIME_STEP
            shifted = at_times(program, program.times + np.eye(program.nfe)[n] * step * one.time)
            answer = self._answer(n, self.states[n][0], shifted)
            states = self.states[n + 1] + program.w[n].astype(np.float32)[:, None, None] * (answer - self.answers[n])
            return self._difference(n + 1, states, program.w[n] != 0, step)
        combined = np.tensordot(one.W, self.states[n], 1) + one.w * self.answers[n]
        field = combined.astype(np.float32)
        if n == program.nfe - 1:
            return field
        states = self.states[n + 1].copy()
        states[one.j] += np.float32(STEP) * field
        return self._difference(n + 1, states, np.arange(program.buffers) == one.j, STEP)

    def _difference(self, n: int, states: Floats, changed: np.ndarray, step: float) -> Floats:
        """(sample from `states` before evaluation n - sample) / step; evaluations of unchanged inputs are kept."""
        program = self.program
        for m in range(n, program.nfe):
            answer = self._answer(m, states[0]) if changed[0] else self.answers[m]
            asked = changed[0]
            changed = (program.W[m] != 0) @ changed | (asked & (program.w[m] != 0))
            states = update(program.W[m], program.w[m], states, answer)
        return (states[0] - self.states[-1][0]) / np.float32(step)


def _solve(normal: Array, slope: Array, damping: float) -> Array:
    """The damped Gauss-Newton move; directions that change nothing stay where they are."""
    scale = np.sqrt(np.diag(normal)) + 1e-30
    eigenvalues, vectors = np.linalg.eigh(normal / np.outer(scale, scale))
    return -(vectors @ ((vectors.T @ (slope / scale)) / (np.maximum(eigenvalues, 0) + damping))) / scale


def _length(field: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(field, dtype=np.float64))))


def _complement(rows: Array) -> Array:
    """An orthonormal basis, as rows, of what `rows` do not span."""
    _, singular, directions = np.linalg.svd(rows)
    return directions[int(np.sum(singular > 1e-6 * max(singular[0], 1e-30))) :]


def moved(program: Program, parameters: list[Parameter], move: Array) -> Program:
    """The program with its parameters moved, each by `move` times its unit; times keep their order."""
    W, w, times = program.W.copy(), program.w.copy(), program.times.copy()
    for one, by in zip(parameters, move, strict=True):
        if one.j < 0:
            times[one.n] += one.time * float(np.clip(by, -FARTHEST, FARTHEST))
        else:
            W[one.n, one.j] += by * one.W
            w[one.n, one.j] += by * one.w
    program = replace(program, W=W, w=w)
    if all(one.j >= 0 for one in parameters):
        return program
    process = parse_schedule(program.schedule)
    return at_times(program, np.clip(times, process.first, process.last))


def time_gaps(program: Program) -> Array:
    """Distance of each time to the nearest other one or to the clean point; 0 for all where times are integers."""
    process = parse_schedule(program.schedule)
    if process.discrete:
        return np.zeros(program.nfe)
    distance = np.abs(program.times[:, None] - np.append(program.times, process.clean)[None, :])
    distance[np.arange(program.nfe), np.arange(program.nfe)] = np.inf
    return distance.min(axis=1)


def at_times(program: Program, times: Array) -> Program:
    """The program with its network asked at other times, W and w as they are."""
    process = parse_schedule(program.schedule)
    network_times, c_in = times.copy(), np.ones(len(times))
    p, q = program.p.copy(), program.q.copy()
    for n, t in enumerate(times):
        if program.prediction == "edm":
            c_in[n], _, _, network_times[n] = edm_preconditioning(float(process.sigma(t)), program.sigma_data)
        if program.clip is not None:
            p[n], q[n] = convert("x0", program.prediction, float(t), process, program.sigma_data)
    return replace(program, times=times.copy(), network_times=network_times, c_in=c_in, p=p, q=q)


def finished(program: Program, solver: str) -> Program:
    """The program with its dense table computed anew from W and w, and a name that says what it is."""
    try:
        return replace(program, solver=f"{solver} refined", table=dense_table(program, program.basis))
    except InputError:  # at alpha = 0 not every basis is determined by the network's answer
        basis = OWN_BASIS[program.prediction]
        return replace(program, solver=f"{solver} refined", basis=basis, table=dense_table(program, basis))


def dense_table(program: Program, basis: str) -> Array:
    """The table [N+1, N+1] that a program's updates mean, columns in `basis`: trace.py's lowering, undone.

    Raises InputError where the answers in `basis` do not determine the network's.
    """
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
