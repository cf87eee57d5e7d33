"""Tables by regression on the reference's way, against least squares done by other code, and what they find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.cache import ArrayStore, Journal, content_key
from pfdiff.quality.criteria.error import ErrorCriterion
from pfdiff.quality.refining.aim import Aim
from pfdiff.quality.refining.dense import with_table
from pfdiff.quality.refining.regression import RIDGE, Regression, _places, seeds_that_choose
from pfdiff.quality.sampling.budget import Budget
from pfdiff.quality.sampling.reference import Paths, targets

from ..oracle import Mixture
from .analytic import mixture_pool

SEEDS = 24


def criterion_of(
    schedule: str, prediction: str, journal: Journal | None = None, bounds: tuple[float, float] = (-1.5, 1.5)
) -> tuple[ErrorCriterion, list[int]]:
    """Judged by DPM-Solver++(2M) in 40 evaluations, whose way is kept; and the sizes of the network's calls."""
    pool, calls = mixture_pool(schedule, prediction, 1, SEEDS, 40)
    exact = pfdiff.compile("dpm++:2m", schedule, 40, "uniform", prediction=prediction)
    way: list[np.ndarray] = []
    samples = pool.sample(exact, np.arange(SEEDS), way=way)
    criterion = ErrorCriterion(pool, samples, bounds, Budget(), journal)
    criterion.paths = Paths(exact.times, np.stack(way[::2]))
    return criterion, calls


def regression_of(criterion: ErrorCriterion, schedule: str, prediction: str, nfe: int = 4) -> Regression:
    program = pfdiff.compile("ddim", schedule, nfe, "uniform", prediction=prediction)
    return Regression(criterion, program, 16, "test")


@pytest.mark.parametrize(("schedule", "prediction"), [("linear:1000", "v"), ("vp", "eps"), ("edm", "edm")])
def test_rows_are_least_squares_on_the_way(schedule, prediction):
    criterion, _ = criterion_of(schedule, prediction, bounds=(-np.inf, np.inf))
    regression, places = regression_of(criterion, schedule, prediction), (4, 27, 60, 99)
    found = regression.fit(places)
    assert criterion.paths is not None
    program = with_table(regression.program, found.table, regression.way.times[list(places)])
    noise = criterion.pool.noise[:16].astype(np.float64)
    way: list[np.ndarray] = []
    sample = criterion.pool.sample(program, np.arange(16), way=way)
    columns = [noise, *way[1::2]]
    wanted = [*(regression.way.state(place, 16) for place in places), criterion.targets[:16]]
    for n, target in enumerate(wanted):
        known = np.stack([one.reshape(-1) for one in columns[: n + 1]], axis=1).astype(np.float64)
        ridge = np.sqrt(RIDGE) * np.diag(np.linalg.norm(known, axis=0))
        both = np.concatenate([known, ridge]), np.concatenate([target.reshape(-1), np.zeros(n + 1)])
        best = np.linalg.lstsq(*both, rcond=None)[0]
        np.testing.assert_allclose(known @ found.table[n, : n + 1], known @ best, atol=2e-4 * np.abs(target).max())
    error = np.sqrt(np.mean((sample - criterion.targets[:16]) ** 2))
    assert found.error == pytest.approx(error, rel=1e-3)


def test_times_are_found_that_beat_every_solver():
    criterion, _ = criterion_of("vp", "eps")
    regression = regression_of(criterion, "vp", "eps")
    found = regression.search([(0, 30, 60, 90)])
    assert found is not None
    assert found.error < 0.7 * regression.fit((0, 30, 60, 90)).error
    assert criterion.paths is not None
    program = with_table(regression.program, found.table, regression.way.times[list(found.places)])
    others = np.arange(16, SEEDS)
    names = ("ddim", "dpm++:2m", "unipc:order=2", "ipndm:order=3", "pfdiff:k=2,l=1")
    rules = [pfdiff.compile(name, "vp", 4, grid, prediction="eps") for name in names for grid in ("uniform", "logsnr")]
    assert criterion.square(program, others) < 0.8 * min(criterion.square(rule, others) for rule in rules)


def test_clipped_elements_are_not_fitted():
    """With bounds inside the data the clipped sample is nearer than that of plain least squares."""
    criterion, _ = criterion_of("linear:1000", "v", bounds=(-0.4, 0.4))
    regression, places = regression_of(criterion, "linear:1000", "v"), (4, 27, 60, 99)
    found = regression.fit(places)
    columns = [criterion.pool.noise[:16], *(one.numpy() for one in regression._last[1])]
    known = np.stack([one.reshape(-1) for one in columns], axis=1).astype(np.float64)
    plain = np.clip(known @ np.linalg.lstsq(known, criterion.targets[:16].reshape(-1), rcond=None)[0], -0.4, 0.4)
    assert found.error < 0.95 * np.sqrt(np.mean((plain - criterion.targets[:16].reshape(-1)) ** 2))


def test_an_interrupted_search_goes_on_and_a_budget_bounds_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    criterion, calls = criterion_of("vp", "eps", Journal(path))
    whole = regression_of(criterion, "vp", "eps").search([(0, 30, 60, 90)])
    again, fresh = criterion_of("vp", "eps", Journal(path))
    before = len(fresh)
    resumed = regression_of(again, "vp", "eps").search([(0, 30, 60, 90)])
    assert whole is not None
    assert resumed is not None
    assert resumed.places == whole.places
    np.testing.assert_array_equal(resumed.table, whole.table)
    assert len(fresh) == before
    assert (again.budget.spent, again.budget.cached) == (criterion.budget.spent, criterion.budget.spent)
    assert sum(calls[40:]) == criterion.budget.spent

    bounded, _ = criterion_of("vp", "eps")
    bounded.budget.evaluations = 1000
    found = regression_of(bounded, "vp", "eps").search([(0, 30, 60, 90)])
    assert found is not None
    assert bounded.budget.spent <= 1000


def test_places_are_the_nearest_times_each_another():
    known = np.linspace(1, 0.1, 10)
    assert _places(known, np.array([0.52, 1.0, 0.31])) == (0, 5, 7)
    assert _places(known, np.array([0.99, 1.0, 0.98])) == (0, 1, 2)
    assert _places(known, np.array([0.02, 0.01, 0.0])) == (7, 8, 9)


def test_a_small_budget_has_no_regression():
    assert seeds_that_choose(None, 5, 256) == 64
    assert seeds_that_choose(None, 5, 20) == 20
    assert seeds_that_choose(500, 5, 256) is None
    assert seeds_that_choose(4000, 5, 256) == 17
    assert seeds_that_choose(4000, 8, 256) == 7


def test_states_on_the_way_are_kept_with_the_reference(tmp_path):
    pool, calls = mixture_pool("vp", "eps", 2, 20, 6)
    program = pfdiff.compile("dpm++:2m", "vp", 12, "uniform")
    keys, store, budget = [content_key(seed) for seed in range(20)], ArrayStore(tmp_path), Budget()
    states = np.zeros((12, 18, 6), np.float32)
    samples = targets(pool, program, keys, store, budget, states=states)
    network = Mixture.of("vp", 3).network("eps")
    for n in (3, 11):  # a DDIM step from the state on the way is that of the same network
        out = pool.answer(program, n, states[n], np.arange(18))
        np.testing.assert_allclose(out, network(states[n].astype(np.float64), program.network_times[n]), atol=1e-5)
    np.testing.assert_allclose(states[0], program.init[0] * pool.noise[:18], rtol=1e-6)
    last = program.W[11, 0, 0] * states[11] + program.w[11, 0] * pool.answer(program, 11, states[11], np.arange(18))
    assert np.sqrt(np.mean((last - samples[:18]) ** 2)) < 0.05
    used, again = len(calls), np.zeros_like(states)
    np.testing.assert_array_equal(targets(pool, program, keys, store, budget, states=again), samples)
    np.testing.assert_array_equal(again, states)
    assert len(calls) == used
    assert budget.cached == 20 * 12


def test_the_residual_is_the_loss():
    """What differences and backpropagation make small is the same, outside the data's range too."""
    generator = torch.Generator().manual_seed(3)
    samples = 1.5 * torch.randn(6, 1, 4, 4, generator=generator)
    aim = Aim(torch.rand(6, 1, 4, 4, generator=generator) * 2 - 1, (-1.0, 1.0))
    rows = torch.arange(6)
    aim.weigh(torch.zeros(6, 1, 4, 4), rows)
    assert (samples.abs() > 1).any()
    slopes = []
    for loss in (aim.loss, lambda x, rows: aim.residual(x, rows).square().sum() / len(x)):
        x = samples.clone().requires_grad_()
        found = loss(x, rows)
        found.backward()
        slopes.append((found.item(), x.grad))
    assert slopes[0][0] == pytest.approx(slopes[1][0], rel=1e-5)
    assert slopes[0][1] is not None
    torch.testing.assert_close(slopes[0][1], slopes[1][1], rtol=1e-4, atol=1e-7)
