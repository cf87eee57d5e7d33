"""The default sampler never loses to DDIM on its best grid: networks of known score, exact and with an error.

Their flow is integrated here by Runge-Kutta, so no sampler judges another. Trained networks are in the study,
bench/results/defaults.json, whose numbers are held to the same bounds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.defaults import AUTO, by_rule, filled, open_grid
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.start import default_start, doubt_of_start, time_of_alpha
from pfdiff.engine.errors import InputError

from ...oracle import Mixture

NFE = (4, 5, 6, 8, 10)
GRIDS = ("uniform", "trailing", "leading", "quadratic", "logsnr", "karras")
NEVER, AHEAD = 1.05, 0.7  # of DDIM's error: the bound at any NFE, and from 8 evaluations on
RESULTS = Path(next(iter(pfdiff.__path__))) / "bench" / "results" / "defaults.json"


class Faulty:
    """An eps-network of the three-component mixture with an error of a few per cent, and its flow."""

    def __init__(self, schedule: str, error: float):
        self.oracle, self.error = Mixture.of(schedule, components=3), error

    def eps(self, x, alpha, sigma):
        return self.oracle.eps_at(x, alpha, sigma) + self.error * np.sin(3 * x + 1)

    def __call__(self, x, t):
        return self.eps(x, float(self.oracle.schedule.alpha(t)), float(self.oracle.schedule.sigma(t)))

    def end(self, x, start: float, steps: int = 1500):
        """x_0 for x at time `start`: Runge-Kutta 4 of d(x / alpha) = (sigma / alpha) eps du, u = log(sigma / alpha)."""
        process = self.oracle.schedule
        first, last = -float(process.lam(start)), math.log(1e-4)

        def slope(y, u):
            alpha = 1 / math.sqrt(1 + math.exp(2 * u))
            return math.exp(u) * self.eps(alpha * y, alpha, alpha * math.exp(u))

        y, h = x / float(process.alpha(start)), (last - first) / steps
        for i in range(steps):
            u = first + i * h
            k_1 = slope(y, u)
            k_2 = slope(y + h / 2 * k_1, u + h / 2)
            k_3 = slope(y + h / 2 * k_2, u + h / 2)
            y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + slope(y + h * k_3, u + h))
        return y


def ratio(network, truth, noise, schedule: str, prediction: str, nfe: int) -> float:
    """Error of the default over that of DDIM on its best grid from its best start."""

    def error(program) -> float:
        return float(np.sqrt(np.mean((program.evaluate(network, noise) - truth) ** 2)))

    process, ddim = parse_schedule(schedule), []
    for grid in GRIDS:
        for start in {process.last, *(time_of_alpha(process, alpha) for alpha in (0.01, 0.03, 0.08))}:
            try:
                ddim.append(error(pfdiff.compile("ddim", schedule, nfe, grid, None, prediction, t_start=start)))
            except InputError:  # lambda has no start where alpha is 0
                continue
    return error(pfdiff.compile(AUTO, schedule, nfe, prediction=prediction)) / min(ddim)


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        ("linear:1000", "eps"),
        ("cosine:300", "eps"),
        ("scaled_linear:1000", "eps"),
        ("cosine:1000", "v"),
        ("flow:shift=3", "flow"),
        ("edm", "edm"),
    ],
)
def test_the_default_never_loses_to_ddim_on_its_best_grid(schedule, prediction):
    process, noise = parse_schedule(schedule), np.random.default_rng(3).standard_normal(64)
    start = process.last if process.alpha(process.last) > 0 else process.last - 1e-3
    alpha, sigma = float(process.alpha(start)), float(process.sigma(start))
    exact = Mixture.of("edm?sigma_min=1e-4&sigma_max=1e6", components=3)
    truth = exact.flow(noise * process.prior_scale(start) / alpha, sigma / alpha, 1e-4, 1000)
    network = Mixture.of(schedule, components=3).network(prediction)
    for nfe in NFE:
        assert ratio(network, truth, noise, schedule, prediction, nfe) <= (AHEAD if nfe >= 8 else NEVER), nfe


@pytest.mark.parametrize("schedule", ["linear:1000", "cosine:1000"])
def test_nor_when_the_network_has_an_error(schedule):
    """An eps-network's x0 near alpha = 0 is its error times 1 / alpha: where the former default made noise."""
    network, noise = Faulty(schedule, 0.03), np.random.default_rng(5).standard_normal(64)
    truth = network.end(noise, default_start(schedule, "eps"))
    for nfe in NFE:
        assert ratio(network, truth, noise, schedule, "eps", nfe) <= (AHEAD if nfe >= 8 else NEVER), nfe
    former = pfdiff.compile("pfdiff:k=2,l=1", schedule, 5, "logsnr").evaluate(network, noise)
    default = pfdiff.compile(AUTO, schedule, 5).evaluate(network, noise)
    assert np.mean((default - truth) ** 2) < 0.1 * np.mean((former - truth) ** 2)


def test_the_stored_study_is_within_the_bounds():
    """Trained networks: what `build` takes, and the rule itself but on MNIST, whose 60 times need the measurement."""
    held = {name: one for name, one in json.loads(RESULTS.read_text()).items() if not name.startswith("mixture")}
    assert len(held) >= 13
    for name, record in held.items():
        for nfe, one in record["nfe"].items():
            assert one["default"] <= NEVER * one["ddim"], (name, nfe)
            assert name == "mnist" or one["rule"] <= NEVER * one["ddim"], (name, nfe)
            if name.startswith(("digits", "moons")) and nfe in ("8", "10"):
                assert one["default"] <= AHEAD * one["ddim"], (name, nfe)


# What is left open, and what is given.
def test_what_is_given_stays_as_it_is():
    words = {"schedule": "linear:1000", "prediction": "eps", "nfe": 8}
    open_ = filled(AUTO, None, None, None, **words)
    assert open_ == by_rule("linear:1000", "eps", 8)
    assert open_.t_start is not None
    assert 0.03 <= parse_schedule("linear:1000").alpha(open_.t_start) < 0.031
    given = filled("ddim", "trailing", "eps", 900.0, **words)
    assert (given.solver, given.grid, given.basis, given.t_start) == ("ddim", "trailing", "eps", 900.0)
    assert filled("ddim", None, None, None, **words).grid == open_.grid
    assert filled(AUTO, None, "eps", None, **words).basis == "eps"
    # Of the rule's two solvers that which a list of times fits: as many as evaluations, or three for each.
    assert filled(AUTO, [*range(900, 100, -100), -1], None, None, **words).solver == "ipndm:order=2"
    assert filled(AUTO, [*range(900, 20, -40), -1], None, None, **words).solver == "pfdiff:k=2,l=1"
    assert filled(AUTO, [999.0, 500.0, -1.0], None, None, **words).grid == (999.0, 500.0, -1.0)


def test_a_solver_on_a_grid_starts_where_tune_does():
    """The last time, which stays unsaid, or on schedules that end in noise alone the last sound one."""
    for schedule, prediction, start in (
        ("linear:1000", "eps", None),
        ("cosine:300", "v", None),
        ("cosine:300", "eps", default_start("cosine:300", "eps")),
    ):
        choice = filled("ddim", "logsnr", None, None, schedule=schedule, prediction=prediction, nfe=5)
        assert choice.t_start == start


@pytest.mark.parametrize("schedule", ["linear:1000", "cosine:60", "cosine:12", "vp", "edm", "flow:shift=3"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_there_is_a_default_for_every_number_of_evaluations(schedule, prediction):
    if prediction == "v" and schedule.startswith(("edm", "flow")):
        prediction = "x0"
    for nfe in (1, 2, 3, 7, 10, 12):
        program = pfdiff.compile(AUTO, schedule, nfe, prediction=prediction)
        assert program.nfe == nfe
        assert np.all(np.diff(program.times) < 0)


def test_zero_terminal_snr_has_a_default():
    program = pfdiff.compile(AUTO, "scaled_linear:1000?terminal=0", 5, prediction="v")
    assert 0 < parse_schedule(program.schedule).alpha(program.times[0]) < 0.05
    exact = pfdiff.compile(AUTO, "scaled_linear:1000?terminal=0", 5, "trailing", prediction="v")
    assert exact.times[0] == 999


def test_the_few_step_form_of_a_grid():
    assert [open_grid(one) for one in ("leading:offset=1", "uniform", "trailing", "karras:rho=7")] == [
        "trailing",
        "trailing",
        "trailing",
        "karras:rho=7",
    ]
    program = pfdiff.compile("ddim", "flow:shift=3", 5, open_grid("uniform"), prediction="flow")
    u = np.array([1, 0.8, 0.6, 0.4, 0.2])  # shift 3 of evenly spaced u, by hand
    np.testing.assert_allclose(program.times, 3 * u / (1 + 2 * u), rtol=1e-12)


@pytest.mark.parametrize("grid", ["leading:offset=1", "uniform", "trailing"])
def test_one_step_from_a_clean_time_is_doubted(grid):
    """With one evaluation `leading` asks the network at time 1, where x is all but clean."""
    program = pfdiff.compile("ddim", "scaled_linear:1000", 1, grid)
    doubt = doubt_of_start(program)
    assert (doubt is not None) == grid.startswith("leading")
    if doubt:
        assert "starts from pure noise at time 1 of scaled_linear:1000" in doubt
        assert "\n" not in doubt
