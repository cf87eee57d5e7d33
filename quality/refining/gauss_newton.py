"""Levenberg-Marquardt over the whole table of a black box: any network on any backend, forward runs alone.

    minimise  sum over training seeds |residual(sample(T, t))|^2     T all entries of the table, t the times (dense.py)

The residual is that of an `Aim`: pixels, and features beside them. A column of its Jacobian is the forward difference
(residual(sample + change) - residual(sample)) / h, for which evaluations before the changed row are kept, so the last
row costs none. The Jacobian is taken on a few of the training seeds, other ones at each step: it has far more elements
than parameters. A step has to lower the loss on all training seeds. What is kept is best on the validation seeds and
on the training seeds, which count as many as are outside a step's Jacobian: few seeds carry most of the error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s, Schedule, parse_schedule
from ..sampling.budget import Budget, BudgetSpentError
from ..sampling.pool import Floats, Pool, Rows
from .aim import Aim
from .dense import entries, table_of, with_table
from .jacobian import at_times
from .through_module import gaps_between

DIFFERENCE = 0.01  # of a forward difference, in root mean square of the state that it moves
TIME_DIFFERENCE = 0.02  # likewise, in parts of the distance to the nearest time; at least 1 where times are whole
FARTHEST = 0.4  # of that distance, that a time moves at once
DAMPING = (1e-3, 1e-8, 1e3)  # first, least, most; of the scaled normal matrix
LADDER = 8.0  # between the dampings that are tried
PATIENCE = 3  # steps without gain on the validation seeds
GAIN = 3e-3  # less than this part of the loss gained twice in a row is the end
CHUNK_BYTES = 1 << 28  # of Jacobian held at once
PART = 64  # samples whose features are computed at once


@final
@dataclass(frozen=True, eq=False)
class Step:
    """Where the search stands: table and times, damping, losses on the training and the validation seeds so far."""

    table: Float64s
    times: Float64s
    damping: float
    training: tuple[float, ...]
    validation: tuple[float, ...]

    def to_data(self) -> dict[str, Any]:
        return {**vars(self), "table": self.table.tolist(), "times": self.times.tolist()}

    @staticmethod
    def from_data(data: Any) -> Step:
        table, times = (np.asarray(data[name], np.float64) for name in ("table", "times"))
        return Step(table, times, float(data["damping"]), tuple(data["training"]), tuple(data["validation"]))


@final
@dataclass(frozen=True, eq=False)
class GaussNewton:
    """One program's table moved on the pool's rows `training`, watched on `validation`; `metric_rows` a Jacobian."""

    pool: Pool
    aim: Aim
    budget: Budget
    program: Program
    training: Rows
    validation: Rows
    metric_rows: int

    @cached_property
    def process(self) -> Schedule:
        """The program's."""
        return parse_schedule(self.program.schedule)

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """The entries of the table that are parameters."""
        return entries(self.program.nfe)

    def run(
        self,
        steps: int,
        known: Callable[[int], Step | None] = lambda _: None,
        keep: Callable[[int, Step, int], None] = lambda *_: None,
        tell: Callable[[Step], None] = lambda _: None,
    ) -> Step:
        """The step that is best on the validation seeds, of at most `steps`; the best so far when the budget is spent.

        known(n), keep(n, step, evaluations): where steps are kept, so that an interrupted run goes on.
        """
        table, times = table_of(self.program), self.program.times.copy()
        first = Step(table, times, DAMPING[0], (), ())
        best = here = first
        slow = 0
        try:
            samples = self._sample(table, times, self.training)
            few = min(PART, len(samples))
            self.aim.weigh(torch.from_numpy(samples[:few]), torch.from_numpy(self.training[:few]))
            loss = self._loss(table, times, self.training, samples)
            here = Step(table, times, DAMPING[0], (loss,), (self._watch(table, times),))
            best = here
            for count in range(steps):
                spent = self.budget.spent
                after = known(count)
                if after is None:
                    after = self._iterate(here, count)
                    if after is None:
                        break
                    keep(count, after, self.budget.spent - spent)
                slow = slow + 1 if after.training[-1] > (1 - GAIN) * here.training[-1] else 0
                here = after
                best = here if self._score(here) < self._score(best) else best
                tell(here)
                if slow > 1 or len(here.validation) - len(best.validation) >= PATIENCE:
                    break
        except BudgetSpentError:
            pass
        return best if best.validation else first

    def _score(self, step: Step) -> float:
        fresh = max(0, len(self.training) - self.metric_rows)
        return fresh * step.training[-1] + len(self.validation) * step.validation[-1]

    def program_at(self, step: Step) -> Program:
        """The program of a step."""
        return with_table(self.program, step.table, step.times)

    # Runs.
    def _sample(
        self, table: Float64s, times: Float64s, rows: Rows, keep: list[Floats] | None = None, known: Any = ()
    ) -> Floats:
        """Samples [m, *shape]; keep: gets the answers; known: the first ones, not asked for again."""
        fed = at_times(self.program, times)
        noise, answers = self.pool.noise[rows], list(known)
        for n in range(len(known), self.program.nfe):
            self.budget.charge(len(rows))
            self.budget.passes(len(rows))
            answers.append(self.pool.answer(fed, n, _sum(table[n], noise, answers), rows))
        if keep is not None:
            keep += answers
        return _sum(table[-1], noise, answers).reshape(-1, *self.pool.shape)

    def _loss(self, table: Float64s, times: Float64s, rows: Rows, samples: Floats | None = None) -> float:
        samples = self._sample(table, times, rows) if samples is None else samples
        if not np.isfinite(samples).all():
            return float("inf")
        total, pairs = 0.0, zip(*(torch.from_numpy(one).split(PART) for one in (samples, rows)), strict=True)
        with torch.no_grad():
            for part, places in pairs:
                total += float(self.aim.residual(part, places).square().sum())
        return total / len(rows)

    def _watch(self, table: Float64s, times: Float64s) -> float:
        return self._loss(table, times, self.validation)

    # A step.
    def _iterate(self, here: Step, count: int) -> Step | None:
        """One step that lowers the loss on all training seeds, None when no damping does."""
        size = min(self.metric_rows, len(self.training))
        first = (count * size) % len(self.training)
        rows = np.take(self.training, np.arange(first, first + size), mode="wrap")
        units, normal, slope, base = self._normal(here.table, here.times, rows)
        if not (np.isfinite(normal).all() and np.isfinite(slope).all()):
            return None
        damping = here.damping
        dampings = [max(DAMPING[1], damping * factor) for factor in (1 / LADDER, 1.0, LADDER)]
        while dampings[0] <= DAMPING[2]:
            tried = []
            for one in dampings:
                for move in self._moves(here.times, units, normal, slope, one):
                    table, times = self._moved(here, units, move)
                    tried.append((self._loss(table, times, rows), one, table, times))
            loss, damping, table, times = min(tried, key=lambda entry: entry[0])
            if loss < base:
                whole = self._loss(table, times, self.training)
                if whole < here.training[-1]:
                    watched = self._watch(table, times)
                    return Step(table, times, damping, (*here.training, whole), (*here.validation, watched))
            dampings = [LADDER**2 * dampings[-1]]
        return None

    def _normal(self, table: Float64s, times: Float64s, rows: Rows) -> tuple[Float64s, Float64s, Float64s, float]:
        """(units [P], J^T J, J^T r, loss) on the seeds `rows`, a few at a time."""
        count = len(self.places) + self.program.nfe
        elements = self.pool.noise.shape[1] * (2 if self.aim.layers is None else 8)
        most = int(max(1, CHUNK_BYTES // (4 * count * elements)))
        units, normal, slope, loss = np.zeros(0), np.zeros(0), np.zeros(0), 0.0
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            answers: list[Floats] = []
            samples = self._sample(table, times, part, keep=answers)
            if not len(units):
                units = self._units(table, times, part, answers)
                normal, slope = np.zeros((len(units), len(units))), np.zeros(len(units))
            residual = self._residual(samples, part)
            columns = self._columns(table, times, part, answers, residual, units)
            normal += columns @ columns.T
            slope += columns @ residual
            loss += float(residual @ residual)
        return units, normal / len(rows), slope / len(rows), loss / len(rows)

    def _residual(self, samples: Floats, rows: Rows) -> Floats:
        with torch.no_grad():
            return self.aim.residual(torch.from_numpy(samples), torch.from_numpy(rows)).flatten().numpy()

    def _units(self, table: Float64s, times: Float64s, rows: Rows, answers: list[Floats]) -> Float64s:
        """How much of each parameter moves its state by a root mean square of 1; of a time, the way to the next."""
        noise = self.pool.noise[rows]
        lengths = [_length(one) for one in (noise, *answers)]
        sizes = [_length(_sum(row, noise, answers)) for row in table]
        coefficients = [sizes[n] / lengths[m] for n, m in self.places]
        return np.append(coefficients, gaps_between(self.program, times))

    def _columns(
        self, table: Float64s, times: Float64s, rows: Rows, answers: list[Floats], base: Floats, units: Float64s
    ) -> Floats:
        """J^T [P, elements] for parameters counted in their units."""
        found = []
        for (n, m), unit in zip(self.places, units, strict=False):
            moved = table.copy()
            moved[n, m] += DIFFERENCE * unit
            samples = self._sample(moved, times, rows, known=answers[:n])
            found.append((self._residual(samples, rows) - base) / np.float32(DIFFERENCE))
        for n, unit in enumerate(units[len(self.places) :]):
            step = self._time_step(float(times[n]), float(unit))
            if step == 0:
                found.append(np.zeros_like(base))
                continue
            moved = times.copy()
            moved[n] += step * unit
            samples = self._sample(table, moved, rows, known=answers[:n])
            found.append((self._residual(samples, rows) - base) / np.float32(step))
        return np.stack(found)

    def _time_step(self, time: float, unit: float) -> float:
        """Of a difference in a time, in its unit; 0 where it cannot move."""
        step = TIME_DIFFERENCE
        if self.process.discrete:
            if unit < 3:
                return 0.0
            step = max(1.0, round(TIME_DIFFERENCE * unit)) / unit
        return -step if time - step * unit >= self.process.first else step

    def _moves(
        self, times: Float64s, units: Float64s, normal: Float64s, slope: Float64s, damping: float
    ) -> list[Float64s]:
        """The damped Gauss-Newton move; where times are whole, with them rounded and the rest solved around them."""
        fixed = np.diag(normal) <= 0
        move = _solve(normal, slope, damping)
        move[fixed] = 0
        count = len(self.places)
        if not self.process.discrete:
            move[count:] = np.clip(move[count:], -FARTHEST, FARTHEST)
            return [move]
        most = np.floor((units[count:] - 1) / 2)
        whole = np.clip(np.rint(move[count:] * units[count:]), -most, most) / units[count:]
        moves = []
        for part in (whole, np.zeros_like(whole)):
            around = np.append(np.zeros(count), part)
            rest = slope[:count] + normal[:count] @ around
            around[:count] = _solve(normal[:count, :count], rest, damping)
            moves.append(around)
            if not whole.any():
                break
        return moves

    def _moved(self, here: Step, units: Float64s, move: Float64s) -> tuple[Float64s, Float64s]:
        count = len(self.places)
        table, change = here.table.copy(), move * units
        for (n, m), by in zip(self.places, change, strict=False):
            table[n, m] += by
        times = np.clip(here.times + change[count:], self.process.first, self.process.last)
        return table, np.rint(times) if self.process.discrete else times


def _sum(row: Float64s, noise: Floats, answers: list[Floats]) -> Floats:
    """row[0] noise + sum of row[1 + m] answers[m], as many as there are, float32."""
    with np.errstate(all="ignore"):  # what is not finite shows in the loss
        total = np.float32(row[0]) * noise
        for m, z in enumerate(answers):
            if row[1 + m]:
                total = total + np.float32(row[1 + m]) * z
    return total


def _length(field: Floats) -> float:
    return max(float(np.sqrt(np.mean(np.square(field, dtype=np.float64)))), 1e-6)


def _solve(normal: Float64s, slope: Float64s, damping: float) -> Float64s:
    """The damped move; directions that change nothing stay where they are."""
    scale = np.sqrt(np.maximum(np.diag(normal), 0)) + 1e-30
    eigenvalues, vectors = np.linalg.eigh(normal / np.outer(scale, scale))
    return -(vectors @ ((vectors.T @ (slope / scale)) / (np.maximum(eigenvalues, 0) + damping))) / scale
