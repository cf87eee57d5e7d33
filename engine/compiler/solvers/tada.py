"""TADA (Chen et al., arXiv 2506.21757): N variables that start from N noises, of which the network sees one mean.

In u from 0, noise, to 1, data, the variables are a chain of integrators (section 3.2 and appendix F.2):

    dX_i/du = X_i+1,  dX_N-1/du = F,     F = N!/(1-u)^N (x_0 - sum_i (1-u)^i/i! X_i)

Held constant, F brings X_0 to x_0 at u = 1. Given x_0 the variables are normal, with S_0 = diag(1, ..., 1, scale^2):

    mean mu x_0, mu_i = N!/(N-i)! u^(N-i)
    covariance S = L S_0 L^T, L = T - mu e^T, T_ij = u^(j-i)/(j-i)!, e_j = 1/j!

The network's input is alpha_t y with y = mu^T S^-1 X / (mu^T S^-1 mu), at the time whose (alpha/sigma)^2 is
mu^T S^-1 mu (proposition 3.1). With a = L^-1 mu that is sum_i a_i^2/s_i^2, where in closed form
a_i = (-1)^(N-i+1) N!/(N-i)! u^(N-i) / (1-u)^N. F is integrated by Adams-Bashforth in u; a clean end takes x_0 itself,
as in algorithm 1. N = 1 is an Adams-Bashforth method for flow matching.

The N - 1 further noises come in when the network's input first depends on them: before evaluation n >= 1 the noises
that were not drawn yet are rotated so that the input holds one of them alone, and that one is drawn. No later step can
tell this from N noises at the start. The method is an ODE: nothing is added to cover an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ...errors import InputError
from ..basis import x_row
from ..schedule import Float64s, Schedule
from .abstract import Evaluate, InX0, StepSolver, Vector, shown
from .deis import lagrange
from .exponential import gauss

HALVINGS = 200  # of the interval that holds log(u / (1 - u))
WIDEST = 60.0


@final
@dataclass(frozen=True)
class Tada(InX0, StepSolver):
    """`tada[:variables=1..4,order=1..3,scale=...]`; scale is the deviation of the last variable's noise."""

    variables: int = 2
    order: int = 3
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.variables not in (1, 2, 3, 4):
            raise InputError(f"tada takes 1 to 4 variables, got {self.variables}")
        if self.order not in (1, 2, 3):
            raise InputError(f"tada takes order 1, 2 or 3, got {self.order}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise InputError(f"tada takes a scale above 0, got {self.scale:g}")

    def __call__(self, evaluate: Evaluate, noise: Vector, grid: Float64s, schedule: Schedule, basis: str) -> Vector:
        chain = Chain(self.variables, self.scale)
        places = [1.0 if t == schedule.clean else chain.place(float(schedule.lam(t))) for t in grid]
        if places[0] <= 0:
            raise InputError("tada cannot start where alpha is 0; start below it (t_start)")
        alpha, _ = x_row(grid[0], schedule)
        state, x = State.start(chain, places[0], (1 / alpha) * noise), noise
        forces: list[Force] = []
        for n, (t, u) in enumerate(zip(grid[:-1], places[:-1], strict=True)):
            x_0 = evaluate(x, t)
            if places[n + 1] == 1:
                return x_0
            forces = [chain.force(state, x_0, u), *forces][: self.order]
            nodes = places[n::-1][: len(forces)]
            state = chain.step(state, forces, nodes, places[n + 1])
            alpha, _ = x_row(grid[n + 1], schedule)
            row = alpha * chain.weights(places[n + 1])
            state, forces = state.drawn(row, forces, evaluate)
            x = total(row, state.known)
        return x

    def __str__(self) -> str:
        scale = "" if self.scale == 1 else f",scale={shown(self.scale)}"
        return f"tada:variables={self.variables},order={self.order}{scale}"


# A vector that is known, and its coefficients of the noises that are not drawn yet.
Force = tuple[Vector, Float64s]


def total(row: Sequence[float] | Float64s, vectors: Sequence[Vector]) -> Vector:
    """The sum of row_i vectors_i."""
    first, *rest = (float(c) * vector for c, vector in zip(row, vectors, strict=True))
    for one in rest:
        first = first + one
    return first


@final
@dataclass(frozen=True)
class State:
    """known: of each variable what is known; open: float64 [N, noises not drawn yet]."""

    known: list[Vector]
    open: Float64s

    @staticmethod
    def start(chain: Chain, u: float, y: Vector) -> State:
        """X at u given y: mu y, and L s times the noises that are orthogonal to the one in y."""
        direction = chain.a(u) / chain.s
        _, _, rows = np.linalg.svd(direction[None, :] / np.linalg.norm(direction))
        return State([float(m) * y for m in chain.mean(u)], chain.L(u) @ (chain.s[:, None] * rows[1:].T))

    def drawn(self, row: Float64s, forces: list[Force], evaluate: Evaluate) -> tuple[State, list[Force]]:
        """The same with the one noise drawn that row . X holds; all others are rotated away from it."""
        held = row @ self.open
        length = float(np.linalg.norm(held))
        if not length:
            return self, forces
        _, _, rotation = np.linalg.svd(held[None, :] / length)
        xi, turn = evaluate.draw(), rotation.T * np.sign(rotation[0] @ held)

        def known(vector: Vector, coefficients: Float64s) -> Force:
            turned = coefficients @ turn
            return vector + float(turned[0]) * xi, turned[1:]

        pairs = [known(vector, one) for vector, one in zip(self.known, self.open, strict=True)]
        return State([vector for vector, _ in pairs], np.array([one for _, one in pairs])), [
            known(vector, one) for vector, one in forces
        ]


@final
class Chain:
    """The N variables: their mean and covariance given x_0, and the exact integral of the chain."""

    def __init__(self, variables: int, scale: float) -> None:
        self.N = variables
        self.s = np.ones(variables)
        self.s[-1] = scale
        self.factorials = np.array([math.factorial(i) for i in range(variables + 1)], np.float64)
        self._left = variables - np.arange(variables)  # N - i

    def mean(self, u: float) -> Float64s:
        """mu"""
        return self.factorials[-1] / self.factorials[self._left] * u**self._left

    def transition(self, h: float) -> Float64s:
        """T of a length h of u."""
        gap = np.arange(self.N)[None, :] - np.arange(self.N)[:, None]
        return np.where(gap >= 0, h ** np.maximum(gap, 0) / self.factorials[np.maximum(gap, 0)], 0.0)

    def L(self, u: float) -> Float64s:
        return self.transition(u) - np.outer(self.mean(u), 1 / self.factorials[:-1])

    def a(self, u: float) -> Float64s:
        """L^-1 mu, but for the factor (1 - u)^-N."""
        return (-1.0) ** (self._left + 1) * self.mean(u)

    def place(self, lam: float) -> float:
        """The u at which mu^T S^-1 mu is e^(2 lambda)."""
        if lam == -math.inf:
            return 0.0
        low, high = -WIDEST, WIDEST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            # log of u / (1 - u) is the middle, and log_left that of 1 - u.
            log_left = -math.log1p(math.exp(middle))
            u = math.exp(middle + log_left)
            found = math.log(float(np.linalg.norm(self.a(u) / self.s))) - self.N * log_left
            low, high = (middle, high) if found < lam else (low, middle)
        return 1 / (1 + math.exp(-(low + high) / 2))

    def weights(self, u: float) -> Float64s:
        """r with y = r . X"""
        b = self.a(u) / self.s**2
        return np.linalg.solve(self.L(u).T, b) * (1 - u) ** self.N / float(np.sum((self.a(u) / self.s) ** 2))

    def force(self, state: State, x_0: Vector, u: float) -> Force:
        """F at u"""
        gain = self.factorials[-1] / (1 - u) ** self.N
        row = -gain * (1 - u) ** np.arange(self.N) / self.factorials[:-1]
        return float(gain) * x_0 + total(row, state.known), row @ state.open

    def step(self, state: State, forces: list[Force], nodes: Sequence[float], u: float) -> State:
        """X at u from X at nodes[0], by the polynomial through the forces at `nodes`."""
        h, (r, weight) = u - nodes[0], gauss(8)
        values = lagrange(nodes[0] + h * r, nodes) * (h * weight)
        # X_i takes the integral of (u - tau)^(N-1-i) / (N-1-i)! F.
        powers = (h * (1 - r)) ** (self._left[:, None] - 1) / self.factorials[self._left - 1][:, None]
        b, T = powers @ values.T, self.transition(h)
        vectors = [*state.known, *(vector for vector, _ in forces)]
        known = [total(row, vectors) for row in np.hstack([T, b])]
        return State(known, T @ state.open + b @ np.array([one for _, one in forces]))
