"""One run of a program with everything kept, and what would change if a coefficient or a time did.

A column of the Jacobian is a forward difference: state j is moved along a combination of the states and the answer
after update n, and only evaluations after n are run again. The last update moves the sample itself, so its columns
cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from ...engine.compiler.basis import convert, edm_preconditioning
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s, parse_schedule
from ..criteria.error import ErrorCriterion
from ..sampling.pool import Floats, Rows, update

STEP = 0.01  # of a difference, in root mean square of the state it moves: float32 networks are exact to 1e-6
TIME_STEP = 0.02  # likewise, in parts of the distance to the next time; at least 1 where times are integers
FARTHEST = 0.4  # of that distance, that a time may move at once


@final
@dataclass(frozen=True, eq=False)
class Parameter:
    """One thing that may be moved, and by how much a unit of it moves: row j of update n, or the time of evaluation n.

    W [B], w: the change of W_n[j] and w_n[j] that moves state j by a root mean square of 1. time: of the time.
    """

    n: int
    j: int
    W: Float64s
    w: float
    time: float = 0.0


@final
class Line:
    """One run of a program with everything kept: states[n] before evaluation n, answers[n]; and runs beside it."""

    def __init__(self, criterion: ErrorCriterion, program: Program, rows: Rows) -> None:
        self._pool, self._budget = criterion.pool, criterion.budget
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

    def _parameter(self, n: int, j: int, sources: list[int], weights: Float64s) -> Parameter:
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
            # Towards the clean end, but for the last time that the network knows; whole where times are.
            process = parse_schedule(program.schedule)
            step = max(1.0, round(TIME_STEP * one.time)) / one.time if process.discrete else TIME_STEP
            step = -step if program.times[n] - step * one.time >= process.first else step
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


def _length(field: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(field, dtype=np.float64))))


def _complement(rows: Float64s) -> Float64s:
    """An orthonormal basis, as rows, of what `rows` do not span."""
    _, singular, directions = np.linalg.svd(rows)
    return directions[int(np.sum(singular > 1e-6 * max(singular[0], 1e-30))) :]


def moved(program: Program, parameters: list[Parameter], move: Float64s) -> Program:
    """The program with its parameters moved, each by `move` times its unit; times keep their order."""
    process = parse_schedule(program.schedule)
    W, w, times = program.W.copy(), program.w.copy(), program.times.copy()
    for one, by in zip(parameters, move, strict=True):
        if one.j < 0:
            times[one.n] += one.time * limited(one, by, process.discrete)
        else:
            W[one.n, one.j] += by * one.W
            w[one.n, one.j] += by * one.w
    program = replace(program, W=W, w=w)
    if all(one.j >= 0 for one in parameters):
        return program
    return at_times(program, np.clip(times, process.first, process.last))


def limited(one: Parameter, by: float, discrete: bool) -> float:
    """The change of a time, in its unit, that keeps it apart from its neighbours, and whole where times are."""
    if not discrete:
        return float(np.clip(by, -FARTHEST, FARTHEST))
    most = (one.time - 1) // 2
    return float(np.clip(np.rint(by * one.time), -most, most)) / one.time


def time_gaps(program: Program) -> Float64s:
    """Distance of each time to the nearest other one or to the clean point; 0 where it cannot move between them."""
    process = parse_schedule(program.schedule)
    distance = np.abs(program.times[:, None] - np.append(program.times, process.clean)[None, :])
    distance[np.arange(program.nfe), np.arange(program.nfe)] = np.inf
    gaps = distance.min(axis=1)
    return np.where(gaps < 3, 0, gaps) if process.discrete else gaps


def at_times(program: Program, times: Float64s) -> Program:
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
