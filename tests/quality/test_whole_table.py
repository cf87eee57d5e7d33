"""The whole family of linear samplers: tables and back, and Gauss-Newton over them on an exact network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.errors import InputError
from pfdiff.quality.refining.aim import Aim
from pfdiff.quality.refining.dense import entries, fits, jacobian_cost, most_buffers, table_of, with_table
from pfdiff.quality.refining.gauss_newton import GaussNewton, Step
from pfdiff.quality.sampling.budget import Budget

from ..oracle import Mixture
from .analytic import mixture_pool

CASES = [
    ("pfdiff:k=2,l=1", "linear:1000", "v", None),
    ("unipc:order=2", "vp", "eps", 1.0),
    ("heun", "edm", "edm", None),
    ("ipndm:order=3", "flow:shift=3", "flow", None),
]


@pytest.mark.parametrize(("solver", "schedule", "prediction", "clip"), CASES)
def test_a_table_over_answers_is_the_program(solver, schedule, prediction, clip):
    program = pfdiff.compile(solver, schedule, 4, "uniform", prediction=prediction, clip=clip)
    again = with_table(program, table_of(program))
    network, noise = Mixture.of(schedule, 3).network(prediction), np.random.default_rng(0).standard_normal((5, 7))
    np.testing.assert_allclose(again.evaluate(network, noise), program.evaluate(network, noise), atol=1e-9)


def test_a_full_table_takes_as_many_buffers_as_are_said():
    program = pfdiff.compile("ddim", "vp", 6, "uniform")
    full = np.tril(np.random.default_rng(1).standard_normal((7, 7)))
    wide = with_table(program, full)
    assert wide.buffers == most_buffers(6) == 4
    noise = np.random.default_rng(2).standard_normal((3, 5))
    known = [noise]  # the noise and the answers so far
    for n in range(6):
        known.append(np.tanh(sum(full[n, m] * one for m, one in enumerate(known))))
    sample = sum(full[6, m] * one for m, one in enumerate(known))
    np.testing.assert_allclose(wide.evaluate(lambda x, t: np.tanh(x), noise), sample, atol=1e-12)
    assert fits(6, 4)
    assert not fits(6, 3)
    assert not fits(40, None)
    assert len(entries(6)) == 7 * 8 // 2


def test_a_stochastic_program_has_no_such_table():
    with pytest.raises(InputError, match="draws noise on the way"):
        table_of(pfdiff.compile("ddpm", "linear:1000", 4))


def of_mixture(schedule: str, prediction: str, nfe: int, seeds: int = 96) -> tuple[GaussNewton, list[int], Budget]:
    """Gauss-Newton from the default sampler, judged by a fine reference; and the sizes of the network's calls."""
    pool, calls = mixture_pool(schedule, prediction, 2, seeds, 24)
    exact = pfdiff.compile("heun", schedule, 400, "karras", prediction=prediction)
    truth = exact.evaluate(Mixture.of(schedule, 3).network(prediction), pool.noise.astype(np.float64))
    aim = Aim(torch.from_numpy(truth.astype(np.float32).reshape(-1, *pool.shape)), (-np.inf, np.inf))
    budget, program = Budget(), pfdiff.compile("auto", schedule, nfe, prediction=prediction)
    rows = np.arange(seeds)
    return GaussNewton(pool, aim, budget, program, rows[: seeds // 2], rows[seeds // 2 :], 8), calls, budget


def test_a_jacobian_costs_what_is_said():
    search, calls, budget = of_mixture("vp", "eps", 5)
    table, times, rows = table_of(search.program), search.program.times, np.arange(8)
    search.aim.weigh(torch.from_numpy(search._sample(table, times, rows)), torch.from_numpy(rows))
    before, spent = sum(calls), budget.spent
    search._normal(table, times, rows)
    assert sum(calls) - before == budget.spent - spent == 8 * (jacobian_cost(5) + 5)


def test_four_evaluations_become_as_good_as_many():
    """The best rule has an error of 0.026 with 4 evaluations here, and 0.0056 with 10."""
    search, _, _ = of_mixture("edm", "edm", 4)
    found = search.run(14)
    assert found.validation[-1] < 0.02 * found.validation[0]
    truth, rows = search.aim.targets.numpy(), search.validation
    samples = search.pool.sample(search.program_at(found), rows).reshape(-1, *search.pool.shape)
    assert np.sqrt(np.mean((samples - truth[rows]) ** 2)) < 0.0056


def test_an_interrupted_search_goes_on():
    search, calls, _ = of_mixture("vp", "eps", 4)
    kept: dict[int, Step] = {}
    whole = search.run(3, keep=lambda n, step, _: kept.update({n: step}))
    done = sum(calls)
    read = {n: Step.from_data(step.to_data()) for n, step in kept.items()}
    again = search.run(3, known=read.get)
    assert sum(calls) - done == 4 * (len(search.training) + len(search.validation))  # the start alone
    np.testing.assert_allclose(again.table, whole.table)


def test_whole_times_stay_whole():
    search, _, _ = of_mixture("linear:1000", "v", 5)
    found = search.run(4)
    times = search.program_at(found).times
    assert np.all(times == np.rint(times))
    assert found.validation[-1] < found.validation[0]


def test_a_spent_budget_gives_the_best_so_far():
    search, _, budget = of_mixture("edm", "edm", 4)
    budget.evaluations = 3000
    found = search.run(20)
    assert budget.spent <= 3000
    assert found.validation[-1] <= found.validation[0]
