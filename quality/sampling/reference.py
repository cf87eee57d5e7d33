"""The many-step reference that errors are distances to, computed once for each seed and kept by content.

Schedules of at most 128 times are walked with DDIM over every time, the sampler such a network was trained for. Longer
and continuous ones take DPM-Solver++(2M) in 200 evaluations; `Reference.of` says where the grid comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ...engine.cache import ArrayStore
from ...engine.compiler.program import Program, compile
from ...engine.compiler.schedule import parse_schedule
from .pool import Budget, Floats, Pool

SHORT = 128  # times of a schedule that is walked whole
EVALUATIONS = 200
BLOCK = 16  # samples computed, and kept, at once
SOUND_ALPHA = 0.01  # an eps-network's x0 loses its digits below: x0 = (x - sigma eps) / alpha
# Below this one pictures break: of an MNIST network on cosine:60 all from alpha 2.6e-4, none from 0.026.
BROKEN_ALPHA = 0.001


@final
@dataclass(frozen=True)
class Reference:
    """A sampler of many evaluations: what `pfdiff.compile` needs to know of it."""

    solver: str
    grid: str
    nfe: int

    @staticmethod
    def of(schedule: str, t_start: float, nfe: int | None = None) -> Reference:
        """The reference of a schedule from `t_start`; `nfe` evaluations in place of its own number."""
        process = parse_schedule(schedule)
        every = int(t_start - process.first) + 1
        if process.discrete and every <= SHORT and nfe in (None, every):
            return Reference("ddim", "uniform", every)
        count = nfe or EVALUATIONS
        if process.discrete:
            return Reference("dpm++:2m", "uniform", min(count, every))
        return Reference("dpm++:2m", "karras" if process.velocity != "flow" else "uniform", count)

    def compile(
        self, schedule: str, *, prediction: str, clip: float | None, t_start: float, sigma_data: float
    ) -> Program:
        """Its program. Raises InputError."""
        return compile(
            self.solver,
            schedule,
            self.nfe,
            self.grid,
            prediction=prediction,
            clip=clip,
            t_start=t_start,
            sigma_data=sigma_data,
        )


def default_start(schedule: str, prediction: str) -> float:
    """The schedule's last time; for eps-networks the last one with alpha of at least 0.01.

    Cosine schedules end near alpha = 1e-4, where the x0 that an eps-network means is noise times 10,000.
    """
    process = parse_schedule(schedule)
    if prediction != "eps" or float(process.alpha(process.last)) >= SOUND_ALPHA:
        return process.last
    start = float(process.time_from_lambda(math.log(SOUND_ALPHA / math.sqrt(1 - SOUND_ALPHA**2))))
    return float(math.floor(start)) if process.discrete else start


def doubt_of_start(program: Program) -> str | None:
    """One line on a program of an eps-network that starts where its x0 is mostly the network's error, else None."""
    process, start = parse_schedule(program.schedule), float(program.times[0])
    alpha = float(process.alpha(start))
    if program.prediction != "eps" or program.clip is not None or alpha >= BROKEN_ALPHA:
        return None
    sound = default_start(program.schedule, "eps")
    return (
        f"NFE {program.nfe} starts at time {start:g} of {program.schedule}, where alpha is {alpha:.1e} and the x0 "
        f"of an eps-network its error times {1 / alpha:.0f}; if samples break, start at {sound:g} "
        "(t_start, --t-start) or clip x0 (clip, --clip 1)"
    )


def targets(
    pool: Pool,
    program: Program,
    keys: Sequence[str],
    store: ArrayStore,
    budget: Budget,
    tell: Callable[[int], None] | None = None,
) -> Floats:
    """Samples float32 [n, elements] of `program` for the pool's n seeds; keys [n] name what each depends on.

    What the store holds is not computed again. tell(evaluations done) is called after each block.
    Raises BudgetSpentError.
    """
    result = np.empty_like(pool.noise)
    missing: list[int] = []
    for row, key in enumerate(keys):
        held = store.get(key, result[row].shape)
        if held is None:
            missing.append(row)
        else:
            budget.charge(program.nfe, cached=True)
            result[row] = held
    for first in range(0, len(missing), BLOCK):
        rows = np.array(missing[first : first + BLOCK], np.intp)
        budget.charge(program.nfe * len(rows))
        result[rows] = pool.sample(program, rows)
        for row in missing[first : first + BLOCK]:
            store.put(keys[row], result[row])
        if tell:
            tell(budget.spent)
    return result
