"""A table run over a black box: any network on any backend, forward runs alone, slopes by forward differences.

The same calls as ThroughModule's, for a `Descent` that takes its gradients from `Descent.differences`. On a discrete
schedule, and where a network takes whole times, the network is asked at the nearest whole time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from torch import Tensor

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ..sampling.budget import Budget
from ..sampling.pool import Pool
from .aim import as_tensor
from .dense import entries
from .jacobian import at_times
from .through_module import combined

CHUNK_BYTES = 1 << 27  # of a Jacobian held at once
MOST_AT_ONCE = 64


@final
class ThroughPool:
    """Tables run on a pool's rows; each evaluation is charged to `budget`, which may end the run by an exception."""

    differentiable = False
    moves_times = True

    def __init__(self, pool: Pool, program: Program, budget: Budget) -> None:
        self.pool = pool
        self.program = program
        self.budget = budget
        self.noise = as_tensor(pool.noise, pool.shape)
        self.whole_times = parse_schedule(program.schedule).discrete

    def run(
        self,
        table: Tensor,
        times: Tensor,
        rows: Tensor,
        keep: list[Tensor] | None = None,
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """Samples [m, *shape] of the table float64 [N+1, N+1] asked at `times` [N], as ThroughModule.run."""
        asked = times.detach().numpy()
        fed = at_times(self.program, np.rint(asked) if self.whole_times else asked.copy())
        noise, places, answers = self.noise[rows], rows.numpy(), list(known)
        for n in range(len(known), len(asked)):
            y = combined(table[n], noise, answers)
            self.budget.charge(len(places))
            self.budget.passes(len(places))
            z = self.pool.answer(fed, n, y.flatten(1).numpy(), places)
            answers.append(as_tensor(z, self.pool.shape))
            if keep is not None:
                keep += [y, answers[-1]]
        return combined(table[len(asked)], noise, answers)

    def micro_batch(self, nfe: int) -> int:
        """Samples whose Jacobian is held at once."""
        columns = len(entries(nfe)) + nfe
        return int(np.clip(CHUNK_BYTES // (8 * columns * self.noise[0].numel()), 1, MOST_AT_ONCE))

    def time_step(self, time: float, unit: float, least: float) -> float:
        """Of a forward difference in a time, counted in `unit`: towards the clean end where the schedule has room.

        Whole steps on a discrete schedule; 0 where the time cannot move between its neighbours.
        """
        process = parse_schedule(self.program.schedule)
        if process.discrete:
            if unit < 3:
                return 0.0
            least = max(1.0, round(2 * least * unit)) / unit
        return -least if time - least * unit >= process.first else least


def gradient_cost(nfe: int) -> int:
    """Evaluations of a gradient on one seed by forward differences: the run, and what follows each entry and time."""
    return nfe + sum((n + 2) * (nfe - n) for n in range(nfe))
