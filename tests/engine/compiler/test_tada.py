"""TADA against its definition: the chain integrated numerically, and algorithm 1 with all noises drawn at the start."""

from __future__ import annotations

import math

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.solvers.tada import Chain

from ...gaussian import marginal, moments
from ...oracle import Mixture

CASES = [(1, 1.0), (2, 1.0), (2, 3.0), (3, 0.5), (4, 1.0)]


def force_row(variables, u):
    """F = gain x_0 + row . X"""
    gain = math.factorial(variables) / (1 - u) ** variables
    return gain, np.array([-gain * (1 - u) ** i / math.factorial(i) for i in range(variables)])


def slope(state, u, x_0):
    """d state / du; state float64 [N, m], x_0 [m]."""
    gain, row = force_row(len(state), u)
    return np.vstack([state[1:], (gain * x_0 + row @ state)[None]])


def integrated(state, start, end, x_0, steps=4000):
    h = (end - start) / steps
    for n in range(steps):
        u = start + n * h
        k_1 = slope(state, u, x_0)
        k_2 = slope(state + h / 2 * k_1, u + h / 2, x_0)
        k_3 = slope(state + h / 2 * k_2, u + h / 2, x_0)
        k_4 = slope(state + h * k_3, u + h, x_0)
        state = state + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return state


@pytest.mark.parametrize(("variables", "scale"), CASES)
def test_mean_and_weights(variables, scale):
    """mu and L from the chain's own ODE; r is the best linear estimate of x_0, of variance 1 / (mu^T S^-1 mu)."""
    chain, u = Chain(variables, scale), 0.6
    # Columns: the start's unit vectors with x_0 = 0, and x_0 = 1 from nothing.
    start = np.hstack([np.eye(variables), np.zeros((variables, 1))])
    found = integrated(start, 0.0, u, np.append(np.zeros(variables), 1.0))
    np.testing.assert_allclose(chain.mean(u), found[:, -1], rtol=1e-9)
    np.testing.assert_allclose(chain.L(u), found[:, :-1], atol=1e-9)
    mu, L = found[:, -1], found[:, :-1]
    S = L @ np.diag([*[1.0] * (variables - 1), scale**2]) @ L.T
    best = np.linalg.solve(S, mu)
    np.testing.assert_allclose(chain.weights(u), best / (mu @ best), rtol=1e-7)
    assert chain.place(0.5 * math.log(mu @ best)) == pytest.approx(u, abs=1e-9)


@pytest.mark.parametrize("u", [1e-9, 1e-4, 0.5, 0.999])
@pytest.mark.parametrize(("variables", "scale"), CASES)
def test_place_is_the_inverse_of_the_ratio(variables, scale, u):
    chain = Chain(variables, scale)
    ratio = np.linalg.norm(chain.a(u) / chain.s) / (1 - u) ** variables
    assert chain.place(math.log(ratio)) == pytest.approx(u, rel=1e-9)


def algorithm(oracle, grid, variables, scale, order):
    """(mean, variance) of alpha y at the last time: algorithm 1 on normal data, linear in N noises that are all there.

    Vectors are coefficients of (1, noise_1, ..., noise_N); the start is the true marginal of the N variables.
    """
    chain = Chain(variables, scale)
    lam = [float(oracle.schedule.lam(t)) for t in grid]
    places = [chain.place(one) for one in lam]
    mean, std = oracle.means[0], oracle.stds[0]
    mu, L = chain.mean(places[0]), chain.L(places[0])
    # Covariance std^2 mu mu^T + L S_0 L^T, by any root of it.
    root = np.linalg.cholesky(std**2 * np.outer(mu, mu) + L @ np.diag(chain.s**2) @ L.T)
    state, forces = np.hstack([mean * mu[:, None], root]), []
    for n, (t, u) in enumerate(zip(grid[:-1], places[:-1], strict=True)):
        alpha = float(oracle.schedule.alpha(t))
        x = alpha * chain.weights(u) @ state
        predict = oracle.network("x0")
        slope_of = predict(1.0, t) - predict(0.0, t)
        x_0 = slope_of * x
        x_0[0] += predict(0.0, t)
        gain, row = force_row(variables, u)
        forces = [gain * x_0 + row @ state, *forces][:order]
        nodes = np.array(places[n::-1][: len(forces)])
        new = np.zeros_like(state)
        h = places[n + 1] - u
        for i in range(variables):
            for j in range(i, variables):
                new[i] += h ** (j - i) / math.factorial(j - i) * state[j]
            for k, one in enumerate(forces):
                # Exact integral of Lagrange's polynomial times (u' - tau)^(N-1-i) / (N-1-i)!.
                others = np.delete(nodes, k)
                lagrange = np.poly1d(others, r=True) / np.prod(nodes[k] - others)
                kernel = np.poly1d([-1.0, places[n + 1]]) ** (variables - 1 - i) / math.factorial(variables - 1 - i)
                primitive = (lagrange * kernel).integ()
                new[i] += (primitive(places[n + 1]) - primitive(u)) * one
        state = new
    y = float(oracle.schedule.alpha(grid[-1])) * chain.weights(places[-1]) @ state
    return y[0], float(np.sum(y[1:] ** 2))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("variables", "scale"), CASES)
def test_late_draws_are_n_noises_at_the_start(variables, scale, order):
    oracle, grid = Mixture.of("vp"), [0.9, 0.75, 0.6, 0.5, 0.35, 0.2]
    solver = f"tada:variables={variables},order={order},scale={scale:g}"
    program = pfdiff.compile(solver, "vp", len(grid) - 1, grid=grid, basis="eps")
    assert program.draws == tuple(range(variables - 1))
    mean, variance = marginal(oracle, grid[0])
    found = moments(program, oracle, (mean, variance**0.5))
    assert found == pytest.approx(algorithm(oracle, grid, variables, scale, order), rel=1e-8)


def test_a_clean_end_is_the_last_x0():
    """Algorithm 1 returns the network's data at the last time; fewer evaluations draw fewer noises."""
    program = pfdiff.compile("tada:variables=3", "vp", 4, basis="x0")
    np.testing.assert_array_equal(program.table[-1], np.eye(1 + program.noises + 4)[-1])
    assert [pfdiff.compile("tada:variables=3", "vp", nfe).noises for nfe in (1, 2, 3, 4)] == [0, 1, 2, 2]


def test_order_three_after_its_start():
    """The first steps have orders 1 and 2; the error falls at least with the square of the step."""
    oracle, counts = Mixture.of("vp"), [24, 48, 96]
    (mean, variance), (_, variance_end) = marginal(oracle, 0.8), marginal(oracle, 0.25)
    for variables in (1, 2, 3):
        errors = []
        for nfe in counts:
            solver = f"tada:variables={variables},order=3"
            program = pfdiff.compile(solver, "vp", nfe, grid="logsnr", basis="eps", t_start=0.8, end=0.25)
            errors.append(abs(moments(program, oracle, (mean, variance**0.5))[1] - variance_end))
        assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] > 2.4
        assert errors[0] < 2e-4
