"""PFDiff (arXiv 2408.08822, algorithm 1; l is written h in its third version): past and future scores.

A block covers k+1 grid intervals with the evaluations of one interval. With a first-order solver phi, and Q the score
that is kept at the anchor x_i:

    s       = phi(Q, x_i, t_i -> t_{i+l})          springboard, from the past score; thrown away
    Q       = net(s, t_{i+l})                      the future score, the block's only evaluation
    x_{i+k+1} = phi(Q, x_i, t_i -> t_{i+k+1})      from the anchor again, not from s

The first block follows one plain step over a single interval. Solvers of order p = 2, 3 keep the p outputs of a block.
They jump to the springboard with these (no evaluation), and start the next block from there, without going back to the
anchor. Only single-step solvers have blocks; multistep solvers (2m, 3m, deis, ipndm, unipc) already hold past scores.

The ablations of the paper's section 4.4: `use=past` goes on from the springboard, which for eps and x0 is DDIM on
the times {t_0, evaluations, t_M}. `use=future` keeps no score: a second evaluation, at the anchor, gives the score for
the springboard. The paper does not spell `use=future` out; read so, it is a midpoint step of 2 evaluations.

With eta the step from the anchor replaces noise as `ddim:eta=` does (ddim.py), by the deviation of its whole length
t_i -> t_{i+k+1}; over `analytic-ddim` it has the variance that is optimal for that length (stochastic/analytic.py), V
at t_i. The springboard, which is thrown away, stays the deterministic step: so its noise level is right and it draws
nothing. (The authors' code, with eta alone, draws a noise of its own for the springboard.) Neither changes the
evaluations. In x0 the springboard keeps the noise that the anchor holds, old and new; in eps it moves by a past eps
that knows nothing of the new noise, which long steps then amplify (test_stochastic_moments.py). So x0 is the default
with noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from ...errors import InputError
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, Vector, check_fraction, shown
from .block import BlockSolver, blocks, finish
from .ddim import Ddim, phi
from .dpm_solver import SingleStep
from .heun import Heun
from .stochastic import analytic
from .stochastic.noisy import posterior_deviation, renoise

ANALYTIC = "analytic-ddim"
BASES: dict[str, Ddim | BlockSolver] = {
    "ddim": Ddim(),
    "dpm-solver-2": SingleStep("dpm-solver", 2),
    "dpm-solver-3": SingleStep("dpm-solver", 3),
    "dpm++2s": SingleStep("dpm++", 2),
    "dpm++3s": SingleStep("dpm++", 3),
    "heun": Heun(),
    ANALYTIC: Ddim(),
}
USES = ("both", "past", "future")


@final
@dataclass(frozen=True)
class PFDiff(analytic.Analytic):
    """`pfdiff:k=K,l=L[,base=...][,use=...][,eta=...]`, k in 1..3, 0 < l <= k.

    Fractional l over first-order bases on continuous schedules. x0_var: over analytic-ddim, of each step.
    """

    k: int = 2
    l: float = 1
    base: str = "ddim"
    use: str = "both"
    eta: float = 0.0
    x0_var: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise InputError(f"pfdiff has no base {self.base!r}; known: {', '.join(BASES)}")
        if self.use not in USES:
            raise InputError(f"pfdiff has no use={self.use!r}; known: {', '.join(USES)}")
        if self.k not in (1, 2, 3):
            raise InputError(f"pfdiff takes k of 1, 2 or 3, got {self.k:g}")
        if not 0 < self.l <= self.k:
            raise InputError(f"pfdiff takes l above 0 and at most k = {self.k}, got {self.l:g}")
        if self.order > 1 and (self.l != int(self.l) or self.use != "both"):
            raise InputError(f"over {self.base} pfdiff takes whole l and use=both only")
        check_fraction("pfdiff", "an eta", self.eta)
        if self.eta and (self.order > 1 or self.use != "both"):
            raise InputError("pfdiff takes an eta over ddim and analytic-ddim with use=both only")
        if self.base == ANALYTIC and self.use != "both":
            raise InputError(f"over {self.base} pfdiff takes use=both only")
        if self.x0_var and self.base != ANALYTIC:
            raise InputError(f"pfdiff takes x0_var over {ANALYTIC} only")
        analytic.check_variances(self.x0_var)

    @property
    def order(self) -> int:
        return BASES[self.base].evaluations

    @property
    def parameterisation(self) -> str | None:
        return BASES[self.base].parameterisation

    @property
    def default_basis(self) -> str | None:
        return "x0" if self.eta or self.base == ANALYTIC else None

    @property
    def evaluations(self) -> int:
        return self.order

    def intervals(self, nfe: int) -> int:
        """M = (k+1) N/p - k; for use=future (k+1) a block of two evaluations, and one for an odd one."""
        if self.use == "future":
            return (self.k + 1) * (nfe // 2) + nfe % 2
        return (self.k + 1) * blocks(nfe, self.order, str(self)) - self.k

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        base = BASES[self.base]
        if isinstance(base, BlockSolver):
            return self._higher_order(base, evaluate, noise, grid, schedule, basis)
        if self.use == "future":
            return self._future_only(evaluate, noise, grid, schedule, basis)
        return self._first_order(evaluate, noise, grid, schedule, basis)

    @property
    def lacks_variances(self) -> bool:
        return self.base == ANALYTIC and not self.x0_var

    def step_starts(self, grid: Float64s) -> Float64s:
        return np.array([grid[0], *grid[1 : len(grid) - 1 : self.k + 1]])

    def with_variances(self, x0_var: tuple[float, ...]) -> PFDiff:
        return replace(self, x0_var=x0_var)

    def _first_order(self, evaluate: Evaluate, x: Vector, t: Float64s, schedule: Schedule, basis: str) -> Vector:
        starts = self.step_starts(t)
        if self.base == ANALYTIC:
            analytic.check_count(str(self), self.x0_var, len(starts))
        x0_var = dict(zip(starts.tolist(), self.x0_var, strict=True)) if self.x0_var else {}

        def advance(score: Vector, s: float, end: float) -> Vector:
            if not self.eta and not x0_var:
                return phi(score, x, s, end, basis, schedule)
            v = self.eta * posterior_deviation(s, end, schedule)
            if not x0_var:
                return renoise(score, x, s, end, v, evaluate.draw(), basis, schedule)
            return analytic.step(score, x, s, end, v, x0_var[float(s)], evaluate.draw(), basis, schedule)

        # A plain step over one interval.
        score = evaluate(x, t[0])
        x = advance(score, t[0], t[1])

        # Blocks of k+1 intervals.
        for i in range(1, len(t) - 1, self.k + 1):
            spring_time, end_time = time_at(t, i + self.l, schedule), t[i + self.k + 1]
            springboard = phi(score, x, t[i], spring_time, basis, schedule)
            score = evaluate(springboard, spring_time)
            if self.use == "past":
                x = phi(score, springboard, spring_time, end_time, basis, schedule)
            else:
                x = advance(score, t[i], end_time)
        return x

    def _future_only(self, evaluate: Evaluate, x: Vector, t: Float64s, schedule: Schedule, basis: str) -> Vector:
        first = (len(t) - 1) % (self.k + 1)
        if first:  # an odd NFE: a plain step over one interval
            x = phi(evaluate(x, t[0]), x, t[0], t[1], basis, schedule)
        for i in range(first, len(t) - 1, self.k + 1):
            spring_time = time_at(t, i + self.l, schedule)
            springboard = phi(evaluate(x, t[i]), x, t[i], spring_time, basis, schedule)
            x = phi(evaluate(springboard, spring_time), x, t[i], t[i + self.k + 1], basis, schedule)
        return x

    def _higher_order(
        self, base: BlockSolver, evaluate: Evaluate, x: Vector, t: Float64s, schedule: Schedule, basis: str
    ) -> Vector:
        last = len(t) - 1 - (t[-1] == schedule.clean)
        x, scores, eps = base.block(evaluate, x, t[0], t[1], basis, schedule)
        for i in range(1, last, self.k + 1):
            spring_time = t[i + int(self.l)]
            springboard = base.reuse(scores, x, t[i], spring_time, basis, schedule)
            x, scores, eps = base.block(evaluate, springboard, spring_time, t[i + self.k + 1], basis, schedule)
        return finish(eps, x, t, schedule)

    def __str__(self) -> str:
        base = "" if self.base == "ddim" else f",base={self.base}"
        use = "" if self.use == "both" else f",use={self.use}"
        eta = f",eta={shown(self.eta)}" if self.eta else ""
        x0_var = f",x0_var={analytic.listed(self.x0_var)}" if self.x0_var else ""
        return f"pfdiff:k={self.k},l={self.l:g}{base}{use}{eta}{x0_var}"


def time_at(t: Float64s, i: float, schedule: Schedule) -> float:
    """The grid's time at a fractional index: even in lambda, in t next to the clean point or to alpha = 0.

    Raises InputError for a fraction on a discrete schedule, whose times are integers.
    """
    low, fraction = int(i), i - int(i)
    if fraction == 0:
        return float(t[low])
    if schedule.discrete:
        raise InputError(f"fractional l needs a continuous schedule, times here are integers; use l = {max(1, low)}")
    lam = schedule.lam(t[low : low + 2])
    if math.isfinite(lam[0]) and math.isfinite(lam[1]):
        return float(schedule.time_from_lambda(lam[0] + fraction * (lam[1] - lam[0])))
    return float(t[low] + fraction * (t[low + 1] - t[low]))
