"""Mean and variance of a program's samples for normal data, exactly, from its table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pfdiff import Program

from .oracle import Mixture

Network = Callable[[float, float], float]


def moments(
    program: Program, oracle: Mixture, start: tuple[float, float] = (0.0, 1.0), network: Network | None = None
) -> tuple[float, float]:
    """(mean, variance) in each coordinate from noise of mean and deviation `start`; one component, the table in eps.

    network: affine in x, its output eps; by default the oracle's. So d_n = a_n y_n + b_n, and so is every
    row of the table in (1, noise, xi_1, ..., xi_K).
    """
    assert program.basis == "eps"
    assert program.clip is None
    network, noises = network or oracle.network(), program.noises
    outputs: list[np.ndarray] = []
    for n, row in enumerate(program.table):
        y = np.array([row[0] * start[0], row[0] * start[1], *row[1 : 1 + noises]])
        y += sum((c * d for c, d in zip(row[1 + noises :], outputs, strict=False)), np.zeros(2 + noises))
        if n == program.nfe:
            return float(y[0]), float(np.sum(y[1:] ** 2))
        b = network(0.0, program.times[n])
        d = y * (network(1.0, program.times[n]) - b)
        d[0] += b
        outputs.append(d)
    raise AssertionError("a table has a last row")


def x0_variance(oracle: Mixture, t: float) -> float:
    """Var(x_0 | x_t) of one component."""
    alpha, sigma = float(oracle.schedule.alpha(t)), float(oracle.schedule.sigma(t))
    return (oracle.stds[0] * sigma) ** 2 / ((alpha * oracle.stds[0]) ** 2 + sigma**2)


def marginal(oracle: Mixture, t: float) -> tuple[float, float]:
    """(mean, variance) of x_t."""
    alpha, sigma = float(oracle.schedule.alpha(t)), float(oracle.schedule.sigma(t))
    return alpha * oracle.mean, (alpha * oracle.stds[0]) ** 2 + sigma**2
