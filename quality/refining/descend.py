"""Adam over the whole table of a module, in coordinates in which the loss is round.

The parameters theta (dense.py: all entries, and the times) are moved as theta = theta_0 + A u with
A = V (Lambda + damping)^-1/2, V Lambda V^T = J^T J the Gauss-Newton matrix of the start, found by forward differences
on a few seeds. In u the loss is nearly |u - u*|^2, of which Adam (arXiv 1412.6980) needs tens of steps in place of
thousands. Times that have to be whole are rounded after `ROUNDED` of the steps and then stay. Validation seeds decide
what is kept: the start, a point on the way, or the average of the last steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s, parse_schedule
from ..sampling.budget import BudgetSpentError
from .aim import Aim
from .dense import entries, table_of, with_table
from .through_module import ThroughModule, gaps_between

DIFFERENCE = 0.01  # of a forward difference, in root mean square of the state that it moves
DAMPING = 1e-4  # of the largest eigenvalue
RATE = 0.02  # of Adam, in u, of which the optimum lies at about 1; falls as a cosine
ROUNDED = 0.6
AVERAGE = 0.9  # what the running average of u keeps at each step
CHECKS = 4  # looks at the validation seeds on the way
ARRAYS = ("u", "average", "first", "second", "best", "best_times", "frozen")  # of a state


@final
@dataclass(frozen=True)
class Plan:
    """How much is done. batch: seeds of a step. metric_seeds: of the Jacobian at the start."""

    steps: int = 80
    batch: int = 48
    metric_seeds: int = 24
    seed: int = 0


@final
@dataclass(eq=False)
class State:
    """Where a run stands: u, its average and Adam's two moments [P]; errors on the validation seeds so far.

    best [N+1, N+1], best_times [N]: the table that is kept. frozen [N]: times that stay, empty before they do.
    """

    step: int
    u: Float64s
    average: Float64s
    first: Float64s
    second: Float64s
    checks: list[float]
    losses: list[float]
    best: Float64s
    best_times: Float64s
    frozen: Float64s

    def to_data(self) -> dict[str, Any]:
        plain = {name: getattr(self, name).tolist() for name in ARRAYS}
        return {**plain, "step": self.step, "checks": list(self.checks), "losses": list(self.losses)}

    @staticmethod
    def from_data(data: Any) -> State:
        arrays = {name: np.asarray(data[name], np.float64) for name in ARRAYS}
        return State(step=int(data["step"]), checks=list(data["checks"]), losses=list(data["losses"]), **arrays)


@final
class Descent:
    """One program's table moved on the rows `training`; `judge(program)` gives the error that decides what is kept."""

    def __init__(
        self,
        through: ThroughModule,
        aim: Aim,
        training: np.ndarray,
        judge: Callable[[Program], float],
        plan: Plan,
    ) -> None:
        self.through = through
        self.aim = aim
        self.training = training
        self.judge = judge
        self.plan = plan
        program = through.program
        self.places = entries(program.nfe)
        self.start_table = table_of(program)
        self.start_times = program.times.copy()
        self.moves_times = through.moves_times
        self.micro = through.micro_batch(program.nfe)
        self.units = np.zeros(0)
        self.mixing = np.zeros((0, 0))

    # Parameters.
    def _tables(self, theta: Tensor, frozen: Float64s) -> tuple[Tensor, Tensor]:
        """(table, times) of theta [P]; the times are those that are `frozen` if there are any."""
        count = len(self.places)
        rows, columns = np.array(self.places).T
        table = torch.from_numpy(self.start_table.copy())
        step = theta[:count] * torch.from_numpy(self.units[:count])
        table = table.index_put((torch.from_numpy(rows), torch.from_numpy(columns)), step, accumulate=True)
        if len(frozen) or not self.moves_times:
            return table, torch.from_numpy(frozen if len(frozen) else self.start_times)
        process = parse_schedule(self.through.program.schedule)
        times = torch.from_numpy(self.start_times) + theta[count:] * torch.from_numpy(self.units[count:])
        return table, times.clamp(process.first, process.last)

    def _prepare(self) -> None:
        """Units of the parameters, the weights of the aim, and the mixing A of u."""
        rows = torch.from_numpy(self.training[: self.plan.metric_seeds])
        table, times = torch.from_numpy(self.start_table), torch.from_numpy(self.start_times)
        kept: list[Tensor] = []
        with torch.no_grad():
            samples = self.through.run(table, times, rows, kept)
        more = torch.from_numpy(self.training[: 8 * self.plan.metric_seeds])
        self.aim.weigh(self._samples(table, times, more), more)
        states, answers = [*kept[::2], samples], kept[1::2]
        columns = [self.through.noise[rows], *answers]
        lengths = [max(_length(one), 1e-6) for one in columns]
        sizes = [max(_length(one), 1e-6) for one in states]
        self.units = np.array([sizes[n] / lengths[m] for n, m in self.places])
        if self.moves_times:
            self.units = np.append(self.units, gaps_between(self.through.program, self.start_times))
        jacobian = self._jacobian(rows, table, times, samples, answers)
        normal = jacobian @ jacobian.T / len(rows)
        values, vectors = np.linalg.eigh(normal)
        values = np.maximum(values, 0)
        self.mixing = vectors / np.sqrt(values + DAMPING * values[-1])

    def _samples(self, table: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.through.run(table, times, part) for part in rows.split(self.micro)])

    def _jacobian(self, rows: Tensor, table: Tensor, times: Tensor, samples: Tensor, answers: list[Tensor]) -> Float64s:
        """[P, elements] by forward differences; evaluations before the moved one are kept."""
        with torch.no_grad():
            base = self.aim.residual(samples, rows)
            columns = []
            for (n, m), unit in zip(self.places, self.units, strict=False):
                moved = table.clone()
                moved[n, m] += DIFFERENCE * unit
                columns.append(self._difference(moved, times, rows, answers[:n], base, DIFFERENCE))
            for n, unit in enumerate(self.units[len(self.places) :]):
                moved = times.clone()
                step = self.through.time_step(float(times[n]), float(unit), DIFFERENCE)
                moved[n] += step * unit
                known = answers[:n] if step else answers
                columns.append(self._difference(table, moved, rows, known, base, step or 1.0))
        return np.stack(columns)

    def _difference(
        self, table: Tensor, times: Tensor, rows: Tensor, known: list[Tensor], base: Tensor, step: float
    ) -> Float64s:
        samples = self.through.run(table, times, rows, known=known)
        return ((self.aim.residual(samples, rows) - base) / step).double().flatten().numpy()

    # Steps.
    def run(self, held: Any = None, keep: Callable[[Any], None] | None = None) -> tuple[Program, State]:
        """The best program by `judge`, and the last state. held: data of a state to go on from; keep: gets it on.

        A run that goes on gathers what `Aim.pull` knows of the samples anew, so it does not end in the same bits.
        """
        self._prepare()
        count = len(self.units)
        nothing = np.zeros(count)
        table, times = self._whole(nothing, np.zeros(0))
        state = State(0, nothing, nothing, nothing, nothing, [], [], table, times, np.zeros(0))
        if held is not None:
            state = State.from_data(held)
        if not state.checks:
            state.checks.append(self.judge(with_table(self.through.program, table, times)))
        with suppress(BudgetSpentError):
            self._steps(state, keep)
        return with_table(self.through.program, state.best, state.best_times), state

    def _steps(self, state: State, keep: Callable[[Any], None] | None) -> None:
        """All steps that are left. Raises BudgetSpentError."""
        plan = self.plan
        for step in range(state.step, plan.steps):
            if step == self._rounding_step():
                state.frozen = self._frozen(state.u)
            gradient, loss = self._gradient(state.u, step, state.frozen)
            self._adam(state, gradient, step)
            state.losses.append(loss)
            state.step = step + 1
            if (step + 1) % max(1, plan.steps // CHECKS) == 0 or step + 1 == plan.steps:
                self._check(state)
            if keep is not None and ((step + 1) % 10 == 0 or step + 1 == plan.steps):
                keep(state.to_data())

    def _rounding_step(self) -> int:
        return math.ceil(ROUNDED * self.plan.steps)

    def _frozen(self, u: Float64s) -> Float64s:
        """The times of u as they will stay, whole on discrete schedules; empty on others, which move to the end."""
        if not self.moves_times or not parse_schedule(self.through.program.schedule).discrete:
            return np.zeros(0)
        return self._whole(self.mixing @ u, np.zeros(0))[1]

    def _gradient(self, u: Float64s, step: int, frozen: Float64s) -> tuple[Float64s, float]:
        """(d loss / d u, loss) of one batch of the training rows."""
        generator = np.random.default_rng([self.plan.seed, step])
        rows = torch.from_numpy(generator.choice(self.training, min(self.plan.batch, len(self.training)), False))
        theta = torch.from_numpy(self.mixing @ u).requires_grad_()
        loss = 0.0
        for part in rows.split(self.micro):
            table, times = self._tables(theta, frozen)
            one = self.aim.loss(self.through.run(table, times, part), part) * (len(part) / len(rows))
            one.backward()
            loss += float(one.detach())
        assert theta.grad is not None
        return self.mixing.T @ theta.grad.numpy(), loss

    def _adam(self, state: State, gradient: Float64s, step: int) -> None:
        beta_1, beta_2 = 0.9, 0.98
        state.first = beta_1 * state.first + (1 - beta_1) * gradient
        state.second = beta_2 * state.second + (1 - beta_2) * gradient**2
        rate = RATE * min(1.0, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * step / self.plan.steps))
        first, second = state.first / (1 - beta_1 ** (step + 1)), state.second / (1 - beta_2 ** (step + 1))
        state.u = state.u - rate * first / (np.sqrt(second) + 1e-8)
        state.average = AVERAGE * state.average + (1 - AVERAGE) * state.u

    def _check(self, state: State) -> None:
        theta = self.mixing @ (state.average / (1 - AVERAGE**state.step))
        table, times = self._whole(theta, state.frozen)
        error = self.judge(with_table(self.through.program, table, times))
        if error < min(state.checks):
            state.best, state.best_times = table, times
        state.checks.append(error)

    def _whole(self, theta: Float64s, frozen: Float64s) -> tuple[Float64s, Float64s]:
        """(table, times) of theta [P], the times whole on discrete schedules."""
        table, times = self._tables(torch.from_numpy(theta), frozen)
        whole = parse_schedule(self.through.program.schedule).discrete
        return table.numpy(), np.rint(times.numpy()) if whole else times.numpy()


def _length(field: Tensor) -> float:
    return float(field.double().square().mean().sqrt())
