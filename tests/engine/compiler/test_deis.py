"""The weights of DEIS: integrals of Lagrange polynomials, against closed forms to 1e-12."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import Polynomial

from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers.deis import lagrange, weights

LINEAR = parse_schedule("linear:1000")


def through(own, others):
    """The polynomial that is 1 at `own` and 0 at the others."""
    l = Polynomial([1.0])
    for other in others:
        l = l * Polynomial([-other, 1.0]) / (own - other)
    return l


def closed(times, t, variant, basis, schedule):
    """The same weights in closed form, for rho, lambda and a flow's own time."""
    tau = {"t": lambda u: u, "rho": lambda u: np.exp(-schedule.lam(u)), "lambda": schedule.lam}[variant]
    nodes = [float(tau(u)) for u in times]
    ends = float(tau(times[0])), float(tau(t))
    result = []
    for i, own in enumerate(nodes):
        others = [n for j, n in enumerate(nodes) if j != i]
        l = through(own, others)
        if variant == "lambda":  # repeated integration by parts
            sign = {"eps": -1, "x0": 1}[basis]
            parts = sum(((-sign) ** k * l.deriv(k) for k in range(len(nodes))), Polynomial([0.0]))
            scale = float(schedule.alpha(t) if basis == "eps" else schedule.sigma(t))
            low, high = (parts(e) * np.exp(sign * e) for e in ends)
            result.append(scale * (high - low))
        else:
            scale = float(schedule.alpha(t)) if basis == "eps" else 1.0
            result.append(scale * (l.integ()(ends[1]) - l.integ()(ends[0])))
    return result


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("schedule", "variant", "basis", "times"),
    [
        ("linear:1000", "rho", "eps", [300, 420, 610, 700, -1]),
        ("linear:1000", "lambda", "eps", [300, 420, 610, 700, 20]),
        ("linear:1000", "lambda", "x0", [300, 420, 610, 700, 20]),
        ("vp", "rho", "eps", [0.3, 0.5, 0.55, 1.0, 0.0]),
        ("vp", "lambda", "eps", [0.3, 0.5, 0.55, 1.0, 0.001]),
        ("edm", "t", "eps", [3.0, 8.0, 20.0, 80.0, 0.0]),
        ("edm", "lambda", "x0", [3.0, 8.0, 20.0, 80.0, 0.002]),
        ("flow", "t", "v", [0.5, 0.6, 0.9, 1.0, 0.0]),
        ("flow", "t", "v", [0.999, 0.9993, 0.9996, 1.0, 0.01]),
    ],
)
def test_weights_are_exact(schedule, variant, basis, times, order):
    process, t = parse_schedule(schedule), times[-1]
    ours = weights(times[:order], t, variant, basis, process)
    expected = closed(times[:order], t, variant, basis, process)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_weights_in_the_time_of_vp():
    """Against 400 points of Gauss in t, where d rho / dt is known."""
    vp, times, t = parse_schedule("vp"), [0.5, 0.62, 0.8, 1.0], 0.1
    points, weight = np.polynomial.legendre.leggauss(400)
    u = times[0] + (t - times[0]) * (points + 1) / 2
    grown = vp.alpha(u) ** -2
    slope = (0.1 + 19.9 * u) * grown / (2 * np.sqrt(grown - 1))
    expected = float(vp.alpha(t)) * np.sum(lagrange(u, times) * slope * weight, axis=1) * (t - times[0]) / 2
    np.testing.assert_allclose(weights(times, t, "t", "eps", vp), expected, rtol=1e-12)


def test_weights_in_the_time_of_a_discrete_schedule():
    """Between integers lambda is linear in t: piece by piece in closed form."""
    times, t = [60, 75, 100], 12
    expected = np.zeros(3)
    for high in range(60, t, -1):
        (lam_0, lam_1), b = LINEAR.lam([high, high - 1]), float(LINEAR.lam(high - 1) - LINEAR.lam(high))
        for i, own in enumerate(times):
            others = [n for j, n in enumerate(times) if j != i]
            l = through(own, others)(Polynomial([high + lam_0 / b, -1 / b]))  # t as a function of lambda
            parts = sum((l.deriv(k) for k in range(3)), Polynomial([0.0]))
            expected[i] += float(LINEAR.alpha(t)) * (parts(lam_1) * np.exp(-lam_1) - parts(lam_0) * np.exp(-lam_0))
    np.testing.assert_allclose(weights(times, t, "t", "eps", LINEAR), expected, rtol=1e-11)


def test_weights_to_the_clean_point_in_x0_are_the_polynomial_there():
    ours = weights([0.2, 0.5, 0.7], 0.0, "t", "x0", parse_schedule("vp"))
    np.testing.assert_allclose(ours, lagrange(np.array(0.0), [0.2, 0.5, 0.7]), rtol=1e-14)
    assert ours.sum() == pytest.approx(1, rel=1e-14)
