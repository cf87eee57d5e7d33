"""The many-step reference that errors are distances to, computed once for each seed and kept by content.

Schedules of at most 128 times are walked with DDIM over every time, the sampler such a network was trained for. Longer
and continuous ones take DPM-Solver++(2M) in 200 evaluations; `Reference.of` says where the grid comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ...engine.cache import ArrayStore
from ...engine.compiler.compile import compile
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s, parse_schedule
from ...engine.compiler.start import SHORT
from .budget import Budget
from .pool import Floats, Pool

EVALUATIONS = 200
FEW = 36  # of a search
OPEN = "angle:power=1.5"  # a grid that stops before the first time
BLOCK = 16  # samples computed, and kept, at once


@final
@dataclass(frozen=True)
class Reference:
    """A sampler of many evaluations: what `pfdiff.compile` needs to know of it."""

    solver: str
    grid: str
    nfe: int

    @staticmethod
    def of(schedule: str, t_start: float, nfe: int | None = None, prediction: str = "") -> Reference:
        """The reference of a schedule from `t_start`; `nfe` evaluations in place of its own number.

        A consistency model gives x itself at the schedule's first time, so its grid stops before.
        """
        process = parse_schedule(schedule)
        every = int(t_start - process.first) + 1
        if process.discrete and every <= SHORT and nfe in (None, every):
            return Reference("ddim", "uniform", every)
        count = nfe or EVALUATIONS
        if process.discrete:
            return Reference("dpm++:2m", "uniform", min(count, every))
        if prediction == "consistency":
            return Reference("dpm++:2m", OPEN, count)
        return Reference("dpm++:2m", "karras" if process.velocity != "flow" else "uniform", count)

    @staticmethod
    def of_search(schedule: str, t_start: float, prediction: str, nfe: int | None = None) -> Reference:
        """The reference of a search, which has to be only some times as exact as what it judges.

        UniPC-2 in 36 evaluations is within 0.003 of Heun in 400 on the small networks of the study of defaults, where
        tuned samplers of 5 to 8 are at 0.02 to 0.1: on karras for eps-networks, which need many times near the clean
        end, else on a steep angle. Short schedules and an asked number are as in `of`.
        """
        process = parse_schedule(schedule)
        short = process.discrete and int(t_start - process.first) + 1 <= SHORT
        if nfe is not None or short:
            return Reference.of(schedule, t_start, nfe, prediction)
        finite = process.velocity != "flow" and float(process.alpha(t_start)) > 0
        return Reference("unipc:order=2", "karras" if prediction == "eps" and finite else OPEN, FEW)

    def doubled(self) -> Reference:
        """With twice the evaluations, whose distance to this is nearly this one's error."""
        return Reference(self.solver, self.grid, 2 * self.nfe)

    def compile(
        self, schedule: str, *, prediction: str, clip: float | None, t_start: float, sigma_data: float
    ) -> Program:
        """Its program. Raises InputError."""
        process = parse_schedule(schedule)
        from_nothing = process.velocity != "flow" and float(process.alpha(t_start)) == 0  # where eps says nothing of x0
        return compile(
            self.solver,
            schedule,
            self.nfe,
            self.grid,
            "v" if from_nothing else None,
            prediction=prediction,
            clip=clip,
            t_start=t_start,
            sigma_data=sigma_data,
        )


@final
@dataclass(frozen=True, eq=False)
class Paths:
    """Of a many-step program: states float32 [M, seeds, elements] at its times [M]."""

    times: Float64s
    states: Floats


@final
@dataclass(frozen=True, eq=False)
class Trajectory:
    """Of a many-step program: states, answers float32 [M, seeds, elements] at its times, samples [seeds, elements]."""

    program: Program
    states: Floats
    answers: Floats
    samples: Floats


def trajectory(pool: Pool, program: Program, key: str, store: ArrayStore, budget: Budget) -> Trajectory:
    """The way of all the pool's seeds, kept under `key`. Raises BudgetSpentError."""
    count, elements = pool.noise.shape
    held = store.get(f"{key}-way", (2 * program.nfe + 1, count, elements))
    budget.charge(program.nfe * count, cached=held is not None)
    if held is None:
        way: list[Floats] = []
        samples = pool.sample(program, np.arange(count), budget.passes, way)
        held = np.stack([*way[::2], *way[1::2], samples])
        store.put(f"{key}-way", held)
    return Trajectory(program, held[: program.nfe], held[program.nfe : -1], held[-1])


def targets(
    pool: Pool,
    program: Program,
    keys: Sequence[str],
    store: ArrayStore,
    budget: Budget,
    tell: Callable[[int], None] | None = None,
    states: Floats | None = None,
) -> Floats:
    """Samples float32 [n, elements] of `program` for the pool's n seeds; keys [n] name what each depends on.

    What the store holds is not computed again. tell(evaluations done) is called after each block. states float32
    [N, k, elements]: gets the states of the first k seeds at the program's N times.
    Raises BudgetSpentError.
    """
    result = np.empty_like(pool.noise)
    missing: list[int] = []
    for row, key in enumerate(keys):
        held = store.get(key, result[row].shape)
        if held is not None and states is not None and row < states.shape[1]:
            known = store.get(f"{key}-states", states[:, row].shape)
            states[:, row] = 0 if known is None else known
            held = None if known is None else held
        if held is None:
            missing.append(row)
            continue
        budget.charge(program.nfe, cached=True)
        result[row] = held
    for first in range(0, len(missing), BLOCK):
        rows = np.array(missing[first : first + BLOCK], np.intp)
        budget.charge(program.nfe * len(rows))
        way: list[Floats] | None = [] if states is not None and rows[0] < states.shape[1] else None
        result[rows] = pool.sample(program, rows, budget.passes, way)
        for place, row in enumerate(missing[first : first + BLOCK]):
            store.put(keys[row], result[row])
            if way and states is not None and row < states.shape[1]:
                states[:, row] = np.stack([state[place] for state in way[::2]])
                store.put(f"{keys[row]}-states", states[:, row])
        if tell:
            tell(budget.spent)
    return result
