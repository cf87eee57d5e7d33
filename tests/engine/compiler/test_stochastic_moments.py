"""Samplers that draw noise on normal data: mean and variance in closed form, and the order of the marginals."""

from __future__ import annotations

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.schedule import parse_schedule

from ...gaussian import marginal, moments
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


ORDERS = {
    "ddpm": 1,
    "ddpm:variance=large": 1,
    "ddim:eta=0.5": 1,
    "euler-a": 1,
    "dpm++:sde": 2,
    "dpm++:2m-sde": 2,
    "dpm++:3m-sde": 2,  # halves the second difference
    "dpm++:3m-sde-diffusers": 1,
    "sa:predictor=1,corrector=0": 1,
    "sa:predictor=2,corrector=0": 2,
    "sa:predictor=2,corrector=2": 2,
    "sa:predictor=2,corrector=2,tau=0.4": 2,
}


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
