"""What a search is given and in which order it tries: pace, prior, guard, shared evaluations, grids of a reference."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.compile import compile as compile_program
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.start import default_start
from pfdiff.quality.sampling.budget import Budget
from pfdiff.quality.sampling.reference import Reference, Trajectory
from pfdiff.quality.search.candidates import Candidate, Setting, all_candidates, compiled
from pfdiff.quality.search.guard import guarded
from pfdiff.quality.search.halving import Search, Trial
from pfdiff.quality.search.pace import halving_runs, pace_of, plan_line, rungs_of
from pfdiff.quality.search.prior import in_order
from pfdiff.quality.search.reference_grids import ReferenceGrids

from ..oracle import Mixture
from .analytic import SCHEDULE, Analytic, mixture_pool
from .test_search import judge_of

NOTHING: tuple[None, None, None] = (None, None, None)


# The pace.
@pytest.mark.parametrize("left", [400, 3000, 20000])
def test_the_first_stage_fits_its_share(left: int) -> None:
    pace = pace_of(Budget(evaluations=left), 5, 8, 8)
    judging = (pace.judged + 2) * (16 if pace.finishes else 8) * 5
    assert pace.allowance + judging <= left or pace.allowance == left // 2
    runs = halving_runs(pace.candidates, rungs_of(pace.seeds), pace.fewest)
    assert pace.candidates == 3 or runs * 5 * 0.75 <= pace.allowance / 2
    assert 4 <= pace.seeds <= 8


def test_more_budget_begins_with_more_samplers() -> None:
    found = [pace_of(Budget(evaluations=left), 8, 4, 4).candidates for left in (1000, 4000, 16000)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_the_plan_says_evaluations_time_and_what_more_brings() -> None:
    budget = Budget(seconds=600.0)
    budget.assumed = 10.0
    pace = pace_of(budget, 5, 4, 4)
    line = plan_line(pace, budget, 5, 0)
    assert "about 9 min at 100 ms an evaluation" in line
    assert f"begins with {pace.candidates} samplers" in line
    assert f"twice that would begin with {2 * pace.candidates}" in line
    unlimited = pace_of(Budget(), 5, 4, 4)
    said = f"plan: {unlimited.allowance + 700} evaluations for the search and refining"
    assert said in plan_line(unlimited, Budget(), 5, 700)


def test_a_search_ends_within_its_budget_and_is_complete() -> None:
    judge, setting, calls = judge_of("linear:1000", seeds=12, nfe=5)
    used = sum(calls)
    judge.budget.evaluations = 1500
    pace = pace_of(judge.budget, 5, 6, 6)
    search = Search(judge, setting, 6, np.arange(6, 12), lambda *_: None)
    trials = search.run(in_order(all_candidates(setting), setting, NOTHING), pace=pace)
    assert search.complete
    assert sum(calls) - used <= judge.budget.spent <= 1500
    held_out = {trial.candidate.solver: trial.held_out_error for trial in trials if trial.held_out_error is not None}
    assert "ddim" in held_out
    assert any(trial.stays and trial.held_out_error is not None for trial in trials)


@pytest.mark.parametrize("paced", [True, False])
def test_only_a_default_that_is_defined_stays(paced: bool) -> None:
    """Not the first of the solvers that were asked for, nor the next where the default does not compile."""
    undefined, two = Candidate("heun", "uniform", "eps", 999), [Candidate("ddim", "uniform", "eps", 999)]
    for candidates, default_first, stays in ((two, False, 0), ([undefined, *two], True, 0), (two, True, 1)):
        judge, setting, _ = judge_of("linear:1000", seeds=8, nfe=5)
        pace = pace_of(judge.budget, 5, 4, 4) if paced else None
        search = Search(judge, setting, 4, np.arange(4, 8), lambda *_: None)
        trials = search.run(candidates, pace=pace, local=False, default_first=default_first)
        assert sum(trial.stays for trial in trials) == stays


# The order.
def test_the_default_and_ddim_come_first_and_nothing_is_lost() -> None:
    setting = Setting("vp", 5, "v", 1.0)
    every = list(all_candidates(setting))
    ordered = list(in_order(every, setting, NOTHING))
    assert ordered[0] == every[0]
    assert [one.solver for one in ordered[1:4]] == ["ddim"] * 3
    assert set(every) <= set(ordered)
    few = list(in_order(all_candidates(setting, solvers=["ddim"]), setting, (["ddim"], None, None)))
    assert {one.solver for one in few} == {"ddim"}


def test_every_sampler_of_the_prior_exists() -> None:
    for schedule, prediction in (("linear:1000", "eps"), ("cosine:300", "eps"), ("flow", "flow"), ("edm", "edm")):
        setting = Setting(schedule, 6, prediction, default_start(schedule, prediction))
        ordered = in_order(iter(()), setting, NOTHING)
        assert len(list(compiled(ordered, setting, set()))) > 10


# The guard.
def trial(solver: str, error: float, held_out: float | None, stays: bool = False) -> Trial:
    program = pfdiff.compile(solver, "vp", 4, "uniform")
    return Trial(Candidate(solver, "uniform", "eps", 1.0), program, None, {4: error}, held_out, stays)


def test_what_was_best_by_chance_does_not_win() -> None:
    lucky, plain = trial("heun", 0.1, 0.3), trial("ddim", 0.12, 0.2)
    ordered, line = guarded([lucky, plain])
    assert ordered == [plain, lucky]
    assert line is not None
    assert "DDIM comes first" in line
    assert guarded([trial("heun", 0.1, 0.15), plain])[1] is None
    default = trial("ipndm:order=2", 0.13, 0.1, stays=True)
    assert guarded([lucky, plain, default])[0][0] is default


# Shared evaluations.
def test_programs_share_what_they_begin_with() -> None:
    pool, calls = mixture_pool("vp", "eps", 0, 4, 3)
    rows, seen = np.arange(4), set[bytes]()
    grid = (1.0, 0.7, 0.4, 0.2, 0.0)
    programs = [pfdiff.compile(solver, "vp", 4, grid) for solver in ("ddim", "ipndm:order=2", "ddim")]
    programs[2] = pfdiff.compile("ddim", "vp", 4, (1.0, 0.7, 0.4, 0.1, 0.0))  # the last time moved
    costs = []
    for program in programs:
        costs.append(pool.cost(program, rows, seen))
        before = sum(calls)
        exact = program.evaluate(Mixture.of("vp", 3).network("eps"), pool.noise.astype(np.float64))
        np.testing.assert_allclose(pool.sample(program, rows), exact, atol=2e-5)
        assert sum(calls) - before == costs[-1]
    assert costs == [16, 8, 4]


# Grids of a reference.
def way_of(schedule: str, prediction: str, nfe: int = 14) -> Trajectory:
    pool, _ = mixture_pool(schedule, prediction, 0, 3, 5)
    program = compile_program("unipc:order=2", schedule, nfe, "karras", prediction=prediction)
    kept: list[Any] = []
    samples = pool.sample(program, np.arange(3), None, kept)
    return Trajectory(program, np.stack(kept[::2]), np.stack(kept[1::2]), samples)


@pytest.mark.parametrize("kind", ["gits", "gits-even"])
def test_the_path_is_the_cheapest_of_all(kind: str) -> None:
    way = way_of("edm", "edm")
    grids = ReferenceGrids(way)
    errors, times = grids._errors[kind], way.program.times
    found = grids.grid(kind, 4)
    costs = {}
    for inner in itertools.combinations(range(1, len(times)), 3):
        path = (0, *inner, len(times))
        costs[inner] = sum(errors[a, b] for a, b in itertools.pairwise(path))
    best = min(costs, key=costs.__getitem__)
    assert found == (times[0], *(times[n] for n in best), 0.0)


def test_one_step_errors_are_those_of_ddim() -> None:
    way = way_of("vp", "eps")
    grids, times, network = ReferenceGrids(way), way.program.times, Mixture.of("vp", 3).network("eps")
    one = pfdiff.compile("ddim", "vp", 1, (float(times[3]), 0.0))
    step = one.evaluate(network, way.states[3].astype(np.float64))
    exact = np.sqrt(np.mean((step - way.samples) ** 2))
    assert grids._errors["gits"][3, len(times)] == pytest.approx(exact, rel=1e-3)


def test_rotation_divides_the_turning_evenly() -> None:
    grids = ReferenceGrids(way_of("vp", "eps", 40))
    points = grids.grid("rotation", 6)
    assert points is not None
    turned = np.interp(points[:-1], grids.times[::-1], grids._turned[::-1])
    np.testing.assert_allclose(np.diff(turned), turned[1] - turned[0], rtol=1e-6)
    assert parse_schedule("vp").clean == points[-1]


# The reference.
@pytest.mark.parametrize(
    ("schedule", "prediction"), [("linear:1000", "v"), ("vp", "eps"), ("edm", "edm"), ("flow:shift=3", "flow")]
)
def test_a_short_reference_is_exact_enough(schedule: str, prediction: str) -> None:
    oracle, start = Mixture.of(schedule), default_start(schedule, prediction)
    chosen = Reference.of_search(schedule, start, prediction)
    program = chosen.compile(schedule, prediction=prediction, clip=None, t_start=start, sigma_data=0.5)
    noise = np.array([-1.3, 0.4, 2.0])
    exact = oracle.flow(noise * oracle.schedule.prior_scale(start), start, oracle.schedule.clean)
    assert chosen.nfe == 36
    assert np.abs(program.evaluate(oracle.network(prediction), noise) - exact).max() < 0.01
    assert chosen.doubled().nfe == 72


def test_a_budget_in_time_knows_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(seconds=60)
    budget.assumed = 20.0
    assert budget.left() == int(0.92 * 60 * 20)
    budget.passes(200)
    now[0] += 20
    assert (budget.speed, budget.part) == (10.0, pytest.approx(1 / 3))
    assert budget.left() == int(0.92 * 40 * 10)


def test_tune_says_its_plan_before_it_searches(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, told = pfdiff.Network(Analytic(), shape=(1, 2, 2), schedule=SCHEDULE, prediction="eps"), []
    ranking = pfdiff.tune(network, 4, budget=2500, progress=lambda stage, *_: told.append(stage))
    assert ranking.complete
    assert ranking.evaluations <= 2500
    assert ranking.plan in told
    searched = next(n for n, stage in enumerate(told) if "candidates on" in stage)
    assert told.index(ranking.plan) < searched
    assert ranking.to_dict()["plan"] == ranking.plan
