"""DDIM (Song et al., arXiv 2010.02502): the first-order step, in any basis.

In eps it is x_t = alpha_t (x_s - sigma_s eps) / alpha_s + sigma_t eps; in other bases the same transfer with
another quantity held constant over the step (basis.py).

With eta, equation 16, each step replaces noise by new noise of eta times the posterior's deviation
(stochastic/noisy.py). Eta 1 is DDPM's ancestral sampling, and Euler's ancestral method in sigma (k-diffusion), whose
sigma_up is that deviation.

Where x0 is clipped, eps follows it. With eps=own the step keeps the network's own (../own_eps.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import final

from ...errors import InputError
from ..basis import transfer
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, InUsersBasis, StepSolver, Vector, check_fraction, shown
from .stochastic.noisy import posterior_deviation, renoise

CLIPPED, OWN = "clipped", "own"  # which eps a step takes where x0 is clipped


def phi(d: Vector, x: Vector, s: float, t: float, basis: str, schedule: Schedule) -> Vector:
    """x_t from x_s and a network output d, which may belong to another state and time."""
    p, q = transfer(s, t, basis, schedule)
    return p * x + q * d


def check_mixing(solver: str, basis: str, schedule: Schedule) -> None:
    """Raises InputError unless outputs of several times may be combined in this basis.

    phi integrates an eps, an x0 or a flow's velocity along one fixed direction, so a mean of outputs is an output too.
    The v of other schedules turns with time, and methods of any order would fall to the first.
    """
    if basis == "v" and schedule.velocity == "v":
        raise InputError(f"{solver} combines outputs of several times, which v is not fit for; use basis eps or x0")


@final
@dataclass(frozen=True)
class Ddim(InUsersBasis, StepSolver):
    """`ddim[:eta=0..1]` or `ddim:eps=own`, in any basis."""

    eta: float = 0.0
    eps: str = CLIPPED

    def __post_init__(self) -> None:
        check_fraction("ddim", "an eta", self.eta)
        if self.eps not in (CLIPPED, OWN):
            raise InputError(f"ddim has no eps {self.eps!r}; known: {CLIPPED}, {OWN}")
        if self.eps == OWN and self.eta:
            raise InputError(f"ddim takes eps={OWN} without an eta, got {self.eta:g}; leave one out")

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        x = noise
        for s, t in pairwise(grid):
            d = evaluate(x, s)
            if self.eta == 0:
                x = phi(d, x, s, t, basis, schedule)
            else:
                v = self.eta * posterior_deviation(s, t, schedule)
                x = renoise(d, x, s, t, v, evaluate.draw(), basis, schedule)
        return x

    def __str__(self) -> str:
        if self.eps == OWN:
            return f"ddim:eps={OWN}"
        return f"ddim:eta={shown(self.eta)}" if self.eta else "ddim"
