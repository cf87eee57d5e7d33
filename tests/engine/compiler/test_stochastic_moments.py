"""Samplers that draw noise on normal data: mean and variance in closed form, and the order of the marginals."""

from __future__ import annotations

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.grid import make_grid
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.compiler.solvers.stochastic.analytic import Analytic

from ...gaussian import marginal, moments, x0_variance
from ...oracle import Mixture

LINEAR = parse_schedule("linear:1000")


def test_moments_from_the_table_are_those_of_samples():
    """200,000 draws of every noise; the mean is 5 deviations of a mean away at most."""
    oracle, count = Mixture.of("vp"), 200_000
    for solver in ("ddpm", "dpm++:2m-sde", "sa"):
        program = pfdiff.compile(solver, "vp", 5, grid="logsnr", basis="eps")
        mean, variance = moments(program, oracle)
        samples = program.evaluate(
            oracle.network(), np.random.default_rng(0).standard_normal(count), seeds=range(count)
        )
        assert samples.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / count))
        assert samples.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / count))


def test_ddpm_keeps_the_variance_that_a_single_step_loses():
    """One DDPM step from s to t on normal data, by hand."""
    oracle, s, t = Mixture.of("linear:1000"), 700, 300
    program = pfdiff.compile("ddpm", "linear:1000", 1, grid=[s, t], basis="eps")
    (a_s, a_t), (s_s, s_t) = LINEAR.alpha([s, t]), LINEAR.sigma([s, t])
    beta = 1 - a_s**2 / a_t**2
    shrink = a_s * 0.7**2 / (a_s**2 * 0.7**2 + s_s**2)  # x_0 = mean + shrink (x_s - a_s mean)
    slope = a_t * beta / s_s**2 * shrink + a_s / a_t * s_t**2 / s_s**2
    found = moments(program, oracle, (a_s * 0.4, 1.0))
    assert found == pytest.approx((a_t * 0.4, slope**2 + beta * s_t**2 / s_s**2), rel=1e-12)


# By order of the marginals; dpm++:3m-sde halves the second difference.
SOLVERS = {
    1: "ddpm ddpm:variance=large ddim:eta=0.5 euler-a dpm++:3m-sde-diffusers sa:predictor=1,corrector=0 "
    "tada:order=1 pfdiff:k=2,l=1,eta=1 pfdiff:k=3,l=1,eta=0.5",
    2: "dpm++:sde dpm++:2m-sde dpm++:3m-sde sa:predictor=2,corrector=0 sa:predictor=2,corrector=2 "
    "sa:predictor=2,corrector=2,tau=0.4 tada:order=2 tada:order=2,scale=2 tada:variables=4,order=2",
}
ORDERS = {solver: order for order, solvers in SOLVERS.items() for solver in solvers.split()}


@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_the_marginals(solver):
    oracle, start, end = Mixture.of("vp"), 0.8, 0.25
    (mean, variance), (mean_end, variance_end) = marginal(oracle, start), marginal(oracle, end)
    errors, counts = [], [48, 96, 192]
    for nfe in counts:
        nfe = nfe - (solver == "dpm++:sde")
        program = pfdiff.compile(solver, "vp", nfe, grid="logsnr", basis="eps", t_start=start, end=end)
        found = moments(program, oracle, (mean, variance**0.5))
        assert found[0] == pytest.approx(mean_end, abs=1e-12)
        errors.append(abs(found[1] - variance_end))
    assert errors[-1] < 0.005
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(ORDERS[solver], abs=0.25)


# Analytic-DPM: for normal data the reverse steps are the true ones, of any length.
@pytest.mark.parametrize("solver", ["analytic-ddpm", "analytic-ddim"])
@pytest.mark.parametrize("grid", [[0.8, 0.25], [0.8, 0.7, 0.25], [0.95, 0.5, 0.4, 0.1, 0.05, 0.01]])
def test_analytic_steps_are_exact(solver, grid):
    oracle = Mixture.of("vp")
    variances = "/".join(repr(x0_variance(oracle, s)) for s in grid[:-1])
    program = pfdiff.compile(f"{solver}:x0_var={variances}", "vp", len(grid) - 1, grid=grid, basis="eps")
    (mean, variance), (mean_end, variance_end) = marginal(oracle, grid[0]), marginal(oracle, grid[-1])
    found = moments(program, oracle, (mean, variance**0.5))
    assert found == pytest.approx((mean_end, variance_end), rel=1e-11)


def test_the_papers_variance():
    """Theorem 1 and equation 11 of arXiv 2201.06503 in its own words: betas, gammas, steps from n to m."""
    alphabar = LINEAR.alpha(np.arange(1000)) ** 2
    n, m, gamma = 700, 300, 0.97
    variance = float((1 - alphabar[n]) / alphabar[n] * (1 - gamma))
    program = pfdiff.compile(f"analytic-ddim:x0_var={variance!r}", "linear:1000", 1, grid=[n, m])
    beta_bar = 1 - alphabar
    inner = np.sqrt(beta_bar[n] * alphabar[m] / alphabar[n]) - np.sqrt(beta_bar[m])
    assert program.table[1, 1] == pytest.approx(inner * np.sqrt(1 - gamma), rel=1e-12)
    program = pfdiff.compile(f"analytic-ddpm:x0_var={variance!r}", "linear:1000", 1, grid=[n, m])
    posterior = beta_bar[m] / beta_bar[n] * (1 - alphabar[n] / alphabar[m])
    inner = np.sqrt(beta_bar[n] * alphabar[m] / alphabar[n]) - np.sqrt(beta_bar[m] - posterior)
    assert program.table[1, 1] ** 2 == pytest.approx(posterior + inner**2 * (1 - gamma), rel=1e-12)


def test_pfdiff_over_analytic_ddim_has_its_deviations():
    """Each step from an anchor has the deviation of the analytic-ddim step of the same length; the last is clean."""
    grid, anchors = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0], [0.9, 0.8, 0.5]
    given = "x0_var=0.4/0.3/0.2"
    program = pfdiff.compile(f"pfdiff:k=2,l=1,base=analytic-ddim,{given}", "vp", 3, grid=grid, basis="eps")
    walked = pfdiff.compile(f"analytic-ddim:{given}", "vp", 3, grid=[*anchors, 0.0], basis="eps")
    assert program.draws == walked.draws == (0, 1)
    # The springboard from an anchor holds the anchor's noise times the ratio of the alphas.
    alpha = parse_schedule("vp").alpha
    for n, (anchor, springboard) in enumerate([(0.8, 0.7), (0.5, 0.4)]):
        held = program.table[n + 1, 1 + n] * float(alpha(anchor) / alpha(springboard))
        assert held == pytest.approx(walked.table[n + 1, 1 + n], rel=1e-12)


def test_pfdiff_with_eta_by_hand():
    """A plain step, then a block from its anchor with one score, on normal data."""
    oracle = Mixture.of("vp")
    t, eta = [0.9, 0.7, 0.6, 0.5, 0.4], 0.6
    program = pfdiff.compile(f"pfdiff:k=2,l=1,eta={eta}", "vp", 2, grid=t, basis="eps")
    network = oracle.network()
    alpha, sigma = oracle.schedule.alpha(t), oracle.schedule.sigma(t)

    def step(x, score, i, j, xi):
        v = eta * sigma[j] / sigma[i] * np.sqrt(1 - (alpha[i] / alpha[j]) ** 2)
        x_0 = (x - sigma[i] * score) / alpha[i]
        return alpha[j] * x_0 + np.sqrt(sigma[j] ** 2 - v**2) * score + v * xi

    noise, xi = np.random.default_rng(0).standard_normal((3, 5))[0], np.random.default_rng(1).standard_normal((2, 5))
    score = network(noise, t[0])
    anchor = step(noise, score, 0, 1, xi[0])
    springboard = alpha[2] * (anchor - sigma[1] * score) / alpha[1] + sigma[2] * score
    expected = step(anchor, network(springboard, t[2]), 1, 4, xi[1])
    np.testing.assert_allclose(program.evaluate(network, noise, steps_noise=xi), expected, rtol=1e-12)


# Samplers of distilled networks: exact for a network that is the flow's own end.
@pytest.mark.parametrize(("solver", "exact"), [("lcm", 1e-3), ("consistency", 1e-3), ("tcd:gamma=1", 0.03)])
@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_a_perfect_consistency_function_gives_the_data(solver, exact, nfe):
    """tcd goes on from time 0, whose noise of 0.01 it takes from its own eps."""
    oracle = Mixture.of("linear:1000")

    def network(x, t):
        alpha, sigma = float(LINEAR.alpha(t)), float(LINEAR.sigma(t))
        return (x - alpha * oracle.flow(x, t, 0)) / sigma

    start, end = marginal(oracle, 999), marginal(oracle, 0)
    times = [999, 749, 499, 249][:: 4 // nfe]
    program = pfdiff.compile(solver, "linear:1000", nfe, grid=[*times, -1], basis="eps")
    mean, variance = moments(program, oracle, (start[0], start[1] ** 0.5), network)
    # The flow ends at time 0, where sigma is 0.01.
    assert mean == pytest.approx(end[0], abs=2e-4)
    assert variance == pytest.approx(end[1], rel=exact)


def test_pfdiff_over_analytic_ddim_adds_too_much_on_normal_data():
    """docs/limits.md: its deviation is optimal for DDIM's mean, and PFDiff's is nearer to the data's."""
    oracle, end = Mixture.of("vp"), 0.25
    method = parse_solver("pfdiff:k=2,l=1,base=analytic-ddim")
    assert isinstance(method, Analytic)
    points = make_grid("logsnr", oracle.schedule, method.intervals(8), 0.8, end, 1)
    variances = tuple(x0_variance(oracle, float(s)) for s in method.step_starts(points))
    mean, variance = marginal(oracle, 0.8)
    errors = []
    for solver in ("pfdiff:k=2,l=1", str(method.with_variances(variances))):
        program = pfdiff.compile(solver, "vp", 8, grid="logsnr", basis="eps", t_start=0.8, end=end)
        errors.append(moments(program, oracle, (mean, variance**0.5))[1] - marginal(oracle, end)[1])
    assert errors == pytest.approx([-0.011, 0.041], abs=5e-4)


@pytest.mark.parametrize("solver", ["ddpm", "dpm++:2m-sde", "sa", "tada:variables=3,order=2", "pfdiff:k=2,l=1,eta=0.6"])
def test_covariance_of_normal_data(solver):
    """Of correlated data: the program is run on unit noises, one a draw, and the squares of what comes out are added.

    Along each axis of the data the table gives the same variance.
    """
    axes = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    deviations, nfe = np.array([1.3, 0.6, 0.1]), 7
    program = pfdiff.compile(solver, "vp", nfe, grid="logsnr", basis="eps", end=0.1)
    process = parse_schedule("vp")

    def network(x, t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return x @ (axes * (sigma / ((alpha * deviations) ** 2 + sigma**2))) @ axes.T

    units = np.eye(3 * (1 + program.noises)).reshape(-1, 1 + program.noises, 3)
    x = program.evaluate(network, units[:, 0], steps_noise=units[:, 1:].transpose(1, 0, 2))
    along = [moments(program, Mixture(process, (0.0,), (std,)))[1] for std in deviations]
    np.testing.assert_allclose(x.T @ x, axes @ np.diag(along) @ axes.T, atol=1e-12)


def test_pfdiff_with_noise_wants_basis_x0():
    """Six evaluations of a mixture, 20,000 samples against as many of the data: ahead of ddpm in x0, useless in eps."""
    oracle, count = Mixture.of("linear:1000", 3), 20_000
    rng = np.random.default_rng(0)
    component = rng.choice(3, count, p=oracle.weights)
    data = np.array(oracle.means)[component] + np.array(oracle.stds)[component] * rng.standard_normal(count)
    noise, errors = rng.standard_normal(count), {}
    for solver, basis in (("ddpm", "eps"), ("pfdiff:k=2,l=1,eta=1", "x0"), ("pfdiff:k=2,l=1,eta=1", "eps")):
        program = pfdiff.compile(solver, "linear:1000", 6, grid="trailing", basis=basis)
        samples = program.evaluate(oracle.network(), noise, seeds=range(count))
        errors[solver, basis] = np.abs(np.sort(samples) - np.sort(data)).mean()
    ddpm, in_x0, in_eps = errors.values()
    assert in_x0 < 0.95 * ddpm
    assert in_eps > 1
