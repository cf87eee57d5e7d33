"""A table over answers, run on seeds: what a `Descent` asks of a network, whether its gradients are known or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor

from ...engine.compiler.program import Program


class Through(ABC):
    """`program` says schedule, prediction and clip. noise float32 [n, *shape]: of the seeds.

    moves_times: whether times are fitted too.
    """

    program: Program
    noise: Tensor
    moves_times: bool

    @abstractmethod
    def asked(self, times: Tensor, rows: Tensor) -> Callable[[Tensor, int], Tensor]:
        """(y [m, *shape], n) -> z_n [m, *shape], the network's answer at `times` [N] for the seeds `rows` [m]."""

    @abstractmethod
    def micro_batch(self, nfe: int) -> int:
        """Samples that are run at once."""

    @abstractmethod
    def time_step(self, time: float, unit: float, least: float) -> float:
        """Of a forward difference in a time, counted in `unit`: towards the clean end where the schedule has room."""

    def run(
        self,
        table: Tensor,
        times: Tensor,
        rows: Tensor,
        keep: list[Tensor] | None = None,
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """Samples [m, *shape] of the table float64 [N+1, N+1] asked at `times` [N].

        keep: gets y_0, z_0, y_1, z_1, ... known: the first answers, which are not asked for again.
        """
        noise, answers, answer = self.noise[rows], list(known), self.asked(times, rows)
        for n in range(len(known), len(times)):
            y = _combined(table[n], noise, answers)
            answers.append(answer(y, n))
            if keep is not None:
                keep += [y, answers[-1]]
        return _combined(table[len(times)], noise, answers)


def _combined(row: Tensor, noise: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """row[0] noise + sum of row[1 + m] answers[m], in float32."""
    factors = row.float()
    total = factors[0] * noise
    for m, z in enumerate(answers):
        total = total + factors[1 + m] * z
    return total
