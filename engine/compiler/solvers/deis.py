"""DEIS (Zhang & Chen, arXiv 2204.13902), the tAB and rhoAB methods: exponential integrators of Adams-Bashforth type.

The linear part of the ODE is integrated exactly; the outputs of the last r evaluations are interpolated by a
polynomial in a coordinate tau, and the polynomial is integrated exactly too (equations 14 and 15):

    x_t = P_t/P_s x_s + sum_i C_i d_i        C_i = P_t int_s^t l_i(tau) dG       l_i: Lagrange polynomials of the nodes

| stored d          | P     | G             |
|-------------------|-------|---------------|
| eps (the paper's) | alpha | sigma / alpha |
| x0                | sigma | alpha / sigma |
| velocity of flows | 1     | t             |

`variant` names tau: `t`, the schedule's time (tAB); `rho` = sigma / alpha (rhoAB, the same as iPNDM with variable
steps and, in eps, plain Adams-Bashforth in EDM's sigma); `lambda` = -log rho, the coordinate of DPM-Solver (the
method of the same order there, in eps what diffusers calls DEIS). `ab:order=r` is the last one.

Order r of accuracy needs good starting values; here the first steps have orders 1, 2, ..., and the one Euler step
leaves an error of h^2 (`test_order.py` shows both). In lambda a step to the clean point, which lies at infinity,
is of first order, and from below the last trained time of a discrete schedule tAB holds tau there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from ...errors import InputError
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, InUsersBasis, StepSolver, Vector
from .ddim import check_mixing, phi
from .exponential import gauss, orders_left

VARIANTS = ("t", "rho", "lambda")
# Sixteen points on pieces of at most 1 in lambda: exact to 1e-14 for the densities below (`test_deis.py`).
POINTS, PIECE = 16, 1.0
# exp(-40) = 4e-18: what lies further along the integral than this is below float64's rounding.
FAR = 40.0


def coordinate(lam: Float64s, variant: str, schedule: Schedule) -> Float64s:
    """tau at the given lambda; times of discrete schedules count as real numbers, lambda linear between integers."""
    match variant:
        case "t":
            return schedule.time_from_lambda(lam)
        case "rho":
            return np.exp(-lam)
    return lam


def node(t: float, variant: str, schedule: Schedule) -> float:
    """tau at a grid time."""
    return float(t if variant == "t" else coordinate(schedule.lam(t), variant, schedule))


def lagrange(tau: Float64s, nodes: Sequence[float]) -> Float64s:
    """l_i(tau) for every node, float64 [len(nodes), *tau.shape]."""
    values = np.ones((len(nodes), *tau.shape))
    for i, own in enumerate(nodes):
        for other in (*nodes[:i], *nodes[i + 1 :]):
            values[i] *= (tau - other) / (own - other)
    return values


def density(lam: Float64s, t: float, basis: str, schedule: Schedule) -> Float64s:
    """P_t dG/dlambda."""
    match basis:
        case "eps":
            return -float(schedule.alpha(t)) * np.exp(-lam)
        case "x0":
            return float(schedule.sigma(t)) * np.exp(lam)
    return -1 / (2 + np.exp(lam) + np.exp(-lam))  # the time of a flow is 1 / (1 + exp(lambda))


def pieces(s: float, t: float, schedule: Schedule) -> Float64s:
    """Ends in lambda of the pieces from s to t on which tau is smooth, cut FAR from the finite ends."""
    lam_s, lam_t = float(schedule.lam(s)), float(schedule.lam(t))
    low = max(lam_s, min(lam_t, 0.0) - FAR)
    high = min(lam_t, max(lam_s, 0.0) + FAR)
    ends = np.linspace(low, high, 1 + int(np.ceil((high - low) / PIECE)))
    if schedule.discrete:
        inner = schedule.lam(np.arange(max(t, schedule.first), s + 1))
        ends = np.unique(np.concatenate([ends, inner[(inner > low) & (inner < high)]]))
    return ends


def weights(times: Sequence[float], t: float, variant: str, basis: str, schedule: Schedule) -> Float64s:
    """C_i of the step from times[0] to t through the outputs at `times`, float64 [len(times)].

    Raises InputError where tau is infinite at one of the times.
    """
    nodes = [node(u, variant, schedule) for u in times]
    if not np.all(np.isfinite(nodes)):
        far = times[int(np.argmin(np.isfinite(nodes)))]
        raise InputError(f"deis in {variant} cannot use time {far:g}, where alpha is 0; pass t_start below it")
    if t == schedule.clean and basis == "x0":
        # sigma_t dG there is all at the end: the value that the polynomial takes.
        return lagrange(np.array(node(t, variant, schedule)), nodes)
    ends, (points, weight) = pieces(times[0], t, schedule), gauss(POINTS)
    lengths = np.diff(ends)[:, None]
    lam = ends[:-1, None] + lengths * points
    values = lagrange(coordinate(lam, variant, schedule), nodes) * density(lam, t, basis, schedule)
    return np.sum(values * (lengths * weight), axis=(1, 2))


@final
@dataclass(frozen=True)
class Deis(InUsersBasis, StepSolver):
    """`deis:order=1..4[,variant=t|rho|lambda]`, in eps, x0 or a flow's velocity. Order 1 is DDIM."""

    order: int = 3
    variant: str = "t"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"deis has order 1, 2, 3 or 4, got {self.order}")
        if self.variant not in VARIANTS:
            raise InputError(f"deis has no variant {self.variant!r}; known: {', '.join(VARIANTS)}")

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        if self.order > 1:
            check_mixing(str(self), basis, schedule)
        x, outputs, times = noise, [], []
        ends_clean = grid[-1] == schedule.clean
        for s, t in pairwise(grid):
            outputs = [evaluate(x, s), *outputs][: self.order]
            times = [float(s), *times][: self.order]
            order = len(outputs)
            if self.variant == "lambda":
                order = (
                    1 if t == schedule.clean else order if ends_clean else min(order, orders_left(t, grid, schedule))
                )
            if order == 1:
                x = phi(outputs[0], x, s, t, basis, schedule)
            else:
                x = self._step(outputs[:order], x, times[:order], t, basis, schedule)
        return x

    def _step(self, outputs: list[Vector], x: Vector, times: list[float], t: float, basis: str, schedule: Schedule):
        # phi carries the linear part; its factor of d_0 is the sum of all C_i.
        C = weights(times, t, self.variant, basis, schedule)
        x_t = phi(outputs[0], x, times[0], t, basis, schedule)
        for C_i, d_i in zip(C[1:], outputs[1:], strict=True):
            x_t = x_t + C_i * (d_i - outputs[0])
        return x_t

    def __str__(self) -> str:
        variant = "" if self.variant == "t" else f",variant={self.variant}"
        return f"deis:order={self.order}{variant}"
