"""The search: what it chooses from, what it costs, that it is the same every time and survives interruption."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.cache import ArrayStore, content_key
from pfdiff.engine.compiler.start import default_start
from pfdiff.engine.contract.seed_conditions import conditions_of
from pfdiff.quality.criteria.error import ErrorCriterion
from pfdiff.quality.sampling.budget import Budget, BudgetSpentError, parse_budget
from pfdiff.quality.sampling.pool import Pool
from pfdiff.quality.sampling.reference import Reference, targets
from pfdiff.quality.search.candidates import Candidate, Setting, all_candidates, behaviour, compiled, neighbours
from pfdiff.quality.search.halving import Search

from ..oracle import Mixture
from ..small.engine import CONDITIONS, CONTRACT, write_onnx
from .analytic import SCHEDULE, mixture_pool

GRIDS = ("uniform", "karras")
QUICK: dict[str, Any] = {"calibration": 8, "held_out": 8, "t_start": 58}
FEW: dict[str, Any] = {
    "solvers": ["ddim", "pfdiff:k=2,l=1", "ipndm:order=2"],
    "grids": ["uniform", "logsnr"],
    "bases": ["eps"],
}


def judge_of(schedule: str = SCHEDULE, seeds: int = 8, nfe: int = 4, budget: Budget | None = None):
    """A judge on a perfect network in NumPy, without cache."""
    pool, calls = mixture_pool(schedule, "eps", 0, seeds, 3)
    setting = Setting(schedule, nfe, "eps", default_start(schedule, "eps"))
    program = Reference.of(schedule, setting.t_start).compile(
        schedule, prediction="eps", clip=None, t_start=setting.t_start, sigma_data=0.5
    )
    truth = pool.sample(program, np.arange(seeds))
    return ErrorCriterion(pool, truth, (-1.0, 1.0), budget or Budget()), setting, calls


# The pool.
def test_pool_runs_a_program_as_its_reference_execution():
    judge, setting, _ = judge_of("linear:1000")
    program = Candidate("pfdiff:k=2,l=1", "logsnr", "eps", 800).compile(setting)
    oracle = Mixture.of("linear:1000", 3)
    exact = program.evaluate(oracle.network(), judge.pool.noise.astype(np.float64))
    np.testing.assert_allclose(judge.pool.sample(program, np.arange(8)), exact, atol=2e-5)


def test_pool_clips_as_its_reference_execution():
    judge, setting, _ = judge_of()
    program = pfdiff.compile("dpm++:2m", SCHEDULE, 5, "logsnr", clip=0.5, t_start=setting.t_start)
    exact = program.evaluate(Mixture.of(SCHEDULE, 3).network(), judge.pool.noise.astype(np.float64))
    np.testing.assert_allclose(judge.pool.sample(program, np.arange(8)), exact, atol=2e-5)


@pytest.mark.parametrize("clips", [(None,) * 3, (0.5,) * 3, (1.0, None, 0.5)])
def test_first_answer_is_asked_once_for_all_programs(clips: tuple[float | None, ...]):
    judge, setting, calls = judge_of()
    rows, before = np.arange(8), len(calls)
    for grid, clip in zip(("uniform", "logsnr", "trailing"), clips, strict=True):
        judge.square(Candidate("ddim", grid, "eps", setting.t_start).compile(replace(setting, clip=clip)), rows)
    assert len(calls) - before == 3 * (setting.nfe - 1)  # the reference has asked already
    assert judge.budget.spent == 8 * (3 * (setting.nfe - 1) + 1)


# The candidates.
@pytest.mark.parametrize("schedule", [SCHEDULE, "linear:1000", "vp", "edm", "flow:shift=3"])
def test_candidates_differ_and_hold_every_family(schedule):
    prediction = {"edm": "edm", "flow:shift=3": "flow"}.get(schedule, "eps")
    setting = Setting(schedule, 6, prediction, default_start(schedule, prediction))
    few = all_candidates(setting, grids=["uniform", "logsnr"] if "flow" not in schedule else ["uniform"])
    found = list(compiled(few, setting, set()))
    families = {one.solver.partition(":")[0] for one, _ in found}
    assert {"ddim", "pfdiff", "dpm++", "deis", "ipndm", "unipc"} <= families
    assert len({behaviour(program) for _, program in found}) == len(found)
    fractional = [one for one, _ in found if "l=0.5" in one.solver or "l=1.5" in one.solver]
    assert bool(fractional) == (schedule in ("vp", "edm", "flow:shift=3"))


def test_one_of_equal_programs_is_kept():
    setting = Setting(SCHEDULE, 4, "eps", 58)
    equal = [Candidate("ddim", "uniform", basis, 58) for basis in ("eps", "x0", "v")]
    assert [one.basis for one, _ in compiled(equal, setting, set())] == ["eps"]


def test_neighbours_move_every_parameter():
    setting = Setting("vp", 6, "eps", 1.0)
    near = list(neighbours(Candidate("pfdiff:k=2,l=1", "karras:rho=3", "eps", 1.0), setting))
    assert "pfdiff:k=2,l=1.25" in {one.solver for one in near}
    assert "pfdiff:k=3,l=2" in {one.solver for one in near}
    assert len({one.grid for one in near}) > 4
    assert {one.basis for one in near} == {"eps", "x0", "v"}
    assert min(one.t_start or 1 for one in near) < 0.95
    assert {one.solver for one in neighbours(Candidate("ipndm:order=3", "logsnr", "eps", 1.0), setting)} >= {
        "ipndm:order=2",
        "ipndm:order=4",
    }


# The search.
def test_search_finds_what_running_everything_finds():
    judge, setting, _ = judge_of(seeds=16)
    trials = Search(judge, setting, 8, np.arange(8, 16), lambda *_: None).run(
        all_candidates(setting, grids=GRIDS), local=False
    )
    every = [
        (judge.square(program, np.arange(8)), one)
        for one, program in compiled(all_candidates(setting, grids=GRIDS), setting, set())
    ]
    best = sorted(every, key=lambda pair: pair[0])[:3]
    assert trials[0].candidate in [one for _, one in best]
    assert trials[0].error() == pytest.approx(math.sqrt(best[0][0] / 8), rel=0.05)
    assert [trial.error() for trial in trials] == sorted(trial.error() for trial in trials)
    assert trials[0].held_out_error is not None
    assert any(trial.candidate.solver == "ddim" for trial in trials)


def test_neighbours_never_make_it_worse():
    results = []
    for local in (False, True):
        judge, setting, _ = judge_of(seeds=16)
        few = [Candidate("ipndm:order=2", "karras", "x0", setting.t_start)]
        results.append(Search(judge, setting, 8, np.arange(8, 16), lambda *_: None).run(few, local=local)[0].error())
    assert results[1] < results[0]


def test_budget_in_evaluations_is_kept_and_gives_the_best_so_far():
    judge, setting, calls = judge_of(seeds=16)
    judge.budget.evaluations, used = 600, sum(calls)
    search = Search(judge, setting, 8, np.arange(8, 16), lambda *_: None)
    trials = search.run(all_candidates(setting, grids=GRIDS))
    assert not search.complete
    assert judge.budget.spent <= 600
    assert sum(calls) - used <= 600
    assert trials[0].error() <= trials[-1].error()


@pytest.mark.parametrize(("text", "evaluations", "seconds"), [(500, 500, None), ("2min", None, 120), ("90s", None, 90)])
def test_budget_words(text, evaluations, seconds):
    budget = parse_budget(text)
    assert (budget.evaluations, budget.seconds) == (evaluations, seconds)


@pytest.mark.parametrize("text", ["", "0", "-3", "soon", "1.5", True, "5days"])
def test_budget_refuses(text):
    with pytest.raises(pfdiff.InputError, match=r"expected a number of evaluations"):
        parse_budget(text)


# The reference.
def test_reference_is_computed_once(tmp_path):
    judge, _, calls = judge_of()
    program = Reference.of(SCHEDULE, 58).compile(SCHEDULE, prediction="eps", clip=None, t_start=58, sigma_data=0.5)
    store, budget = ArrayStore(tmp_path / "store"), Budget()
    keys = [content_key(seed) for seed in range(8)]
    first = targets(judge.pool, program, keys, store, budget)
    used = len(calls)
    np.testing.assert_array_equal(targets(judge.pool, program, keys, store, budget), first)
    assert len(calls) == used
    assert (budget.spent, budget.cached) == (2 * 8 * 59, 8 * 59)
    (tmp_path / "store" / f"{keys[3]}.npy").write_bytes(b"damaged")
    np.testing.assert_allclose(targets(judge.pool, program, keys, store, budget), first, atol=1e-6)
    assert len(calls) == used + 59


def test_reference_is_far_more_exact_than_what_it_judges():
    for schedule, prediction in (("linear:1000", "v"), ("vp", "eps"), ("edm", "edm"), ("flow:shift=3", "flow")):
        oracle, start = Mixture.of(schedule), default_start(schedule, prediction)
        program = Reference.of(schedule, start).compile(
            schedule, prediction=prediction, clip=None, t_start=start, sigma_data=0.5
        )
        noise = np.array([-1.3, 0.4, 2.0])
        scale = oracle.schedule.prior_scale(start)
        found = program.evaluate(oracle.network(prediction), noise)
        exact = oracle.flow(noise * scale, start, oracle.schedule.clean)
        assert np.abs(found - exact).max() < 0.01, schedule


# pfdiff.tune.
@pytest.mark.parametrize("seed", [-1, 1 << 43, 1 << 64])
def test_seeds_that_would_leave_64_bits_are_refused(network, seed):
    with pytest.raises(pfdiff.InputError, match=r"expected an integer in 0 \.\. 8796093022207"):
        pfdiff.tune(network, 4, seed=seed)


def test_tune_is_a_ranked_list(network):
    ranking = pfdiff.tune(network, 4, **QUICK, **FEW)
    assert isinstance(ranking, list)
    best = ranking[0]
    assert best.solver in FEW["solvers"]
    assert (best.error, best.program.nfe) == (min(one.error for one in ranking), 4)
    assert best.held_out_error == pytest.approx(best.error, rel=0.7)
    again = pfdiff.compile(best.solver, SCHEDULE, 4, best.grid, best.basis, "eps", t_start=best.t_start, clip=best.clip)
    assert again.digest == best.program.digest
    assert ranking.reference == Reference("ddim", "uniform", 59)
    assert ranking.complete
    assert ranking.evaluations > 0
    json.dumps(ranking.to_dict(), allow_nan=False)


def test_tune_twice_is_the_same_and_the_second_time_free(network):
    first, second = (pfdiff.tune(network, 4, **QUICK, **FEW) for _ in range(2))
    assert [one.program.digest for one in first] == [one.program.digest for one in second]
    assert [one.error for one in first] == [one.error for one in second]
    assert first.cached == 0
    assert second.evaluations == second.cached == first.evaluations


def test_tune_goes_on_after_an_interruption(network, cache):
    whole = pfdiff.tune(network, 4, **QUICK, **FEW, seed=1)
    calls = 0

    def interrupt(stage, done, expected):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt

    (cache / "search").rename(cache / "before")
    with pytest.raises(KeyboardInterrupt):
        pfdiff.tune(network, 4, **QUICK, **FEW, seed=1, progress=interrupt)
    resumed = pfdiff.tune(network, 4, **QUICK, **FEW, seed=1)
    assert 16 * 59 < resumed.cached < resumed.evaluations == whole.evaluations
    assert [one.program.digest for one in resumed] == [one.program.digest for one in whole]


@pytest.mark.parametrize("refine", [False, True])
def test_tune_with_too_small_a_budget_names_seeds_that_fit(network, refine):
    budget = 500 + refine * 140 * 118
    with pytest.raises(
        pfdiff.InputError, match=r"does not pay for the reference of .* seeds in 59 evaluations"
    ) as refusal:
        pfdiff.tune(network, 4, **FEW, t_start=58, calibration=300, held_out=300, budget=budget, refine=refine)
    found = re.search(r"--calibration (\d+) --held-out (\d+)$", str(refusal.value))
    assert found
    calibration, held_out = map(int, found.groups())
    assert held_out > 0
    settings = {**FEW, "calibration": calibration, "held_out": held_out}
    ranking = pfdiff.tune(network, 4, t_start=58, **settings, budget=budget, refine=refine)
    assert ranking.evaluations <= budget
    few = {**FEW, "t_start": 58, "calibration": 4, "held_out": 4}
    with pytest.raises(pfdiff.InputError, match=r"; give at least \d+") as refusal:
        pfdiff.tune(network, 4, **few, budget=50, refine=refine)
    enough = int(re.findall(r"at least (\d+)", str(refusal.value))[0])
    assert pfdiff.tune(network, 4, **few, budget=enough, refine=refine).evaluations <= enough


@pytest.mark.parametrize("budget", [None, 2000])
def test_solvers_without_a_candidate_are_named(network, budget):
    words = {"t_start": 58, "calibration": 2, "held_out": 2, "grids": ["uniform"], "local": False, "budget": budget}
    ranking = pfdiff.tune(network, 4, solvers=["ddim", "analytic-ddim", "heun"], **words)
    variances = "analytic-ddim is left out: pfdiff build estimates its variances; give it with x0_var="
    assert ranking.left_out == (variances,)
    assert ranking[0].solver in ("ddim", "heun")
    with pytest.raises(pfdiff.InputError, match=r"no candidate is left: heun is left out: .*; analytic-ddim is left"):
        pfdiff.tune(network, 3, solvers=["heun", "analytic-ddim"], **words)


def test_a_budget_in_time_ends_the_reference_between_two_evaluations(tmp_path, monkeypatch):
    """A network that takes a second a batch, by a clock of its own."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    asked = []

    def network(x, t, rows):
        nonlocal now
        now += 1
        asked.append(len(rows))
        return x

    pool, budget = Pool(network, np.ones((40, 1, 3), np.float32)), parse_budget("30s")
    program = Reference.of("vp", 1.0).compile("vp", prediction="eps", clip=None, t_start=1.0, sigma_data=0.5)
    with pytest.raises(BudgetSpentError):
        targets(pool, program, [content_key(seed) for seed in range(40)], ArrayStore(tmp_path / "store"), budget)
    assert now <= 31
    assert 29 * 16 <= budget.affords() <= 31 * 16  # at the speed that was seen, 16 samples a second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nfe": 0}, "nfe=0"),
        ({"nfe": 4, "calibration": 0}, "calibration=0"),
        ({"nfe": 4, "held_out": -1}, "held_out=-1"),
        ({"nfe": 4, "t_start": 99}, "outside this schedule"),
        ({"nfe": 4, "solvers": ["nonsense"]}, "unknown solver .nonsense."),
        ({"nfe": 4, "solvers": ["analytic-ddim"]}, "analytic-ddim is left out"),
        ({"nfe": 4, "reference": 4}, "a reference of 4 evaluations for NFE 4, expected more than 4"),
        ({"nfe": 4, "conditions": {"label": 3}}, "unknown condition 'label'"),
        ({"nfe": 4, "backend": "nonsense"}, "backend 'nonsense'"),
    ],
)
def test_tune_refuses(network, arguments, message):
    with pytest.raises(pfdiff.InputError, match=message):
        pfdiff.tune(network, **{"t_start": 58, "calibration": 2, "held_out": 2, **arguments})


def test_tune_writes_the_winner_into_an_engine(tmp_path):
    write_onnx(tmp_path / "small.onnx")
    small = pfdiff.Network(
        tmp_path / "small.onnx", schedule=SCHEDULE, prediction="eps", conditions={one.name: one for one in CONDITIONS}
    )
    out = tmp_path / "small.engine"
    ranking = pfdiff.tune(small, 4, **QUICK, **FEW, out=out, threads=1)
    labels: dict[str, Any] = {"conditions": {"label": ["one", "two"]}}
    again = pfdiff.tune(out, 3, **QUICK, **FEW, **labels, out=out, threads=1)  # from the directory
    with pfdiff.load(out) as engine:
        assert engine.programs[4].digest == ranking[0].program.digest
        assert engine.programs[3].digest == again[0].program.digest
        record = engine.provenance["search"]
        assert record["4"]["ranking"][0]["error"] == ranking[0].error
        assert record["3"]["evaluations"] == again.evaluations
        assert engine.sample(seeds=[0], nfe=3).isfinite().all()


def test_tune_refines_and_never_ships_what_is_worse(network, tmp_path):
    out = tmp_path / "small.engine"
    write_onnx(tmp_path / "small.onnx")
    small = pfdiff.Network(
        tmp_path / "small.onnx", schedule=SCHEDULE, prediction="eps", conditions={one.name: one for one in CONDITIONS}
    )
    few: dict[str, Any] = {**QUICK, "solvers": ["ddim", "pfdiff:k=1,l=1"], "grids": ["logsnr"], "bases": ["eps"]}
    plain = pfdiff.tune(small, 3, **few, threads=1)
    refined = pfdiff.tune(small, 3, **few, refine=True, out=out, threads=1)
    record = refined.refinement
    assert record is not None
    assert record["from"] == plain[0].solver
    assert record["held_out_before"] == pytest.approx(plain[0].held_out_error, rel=1e-6)
    best = refined[0]
    assert best.held_out_error is not None
    assert record["kept"] == best.solver.endswith(" refined")
    if record["kept"]:
        assert best.held_out_error < record["held_out_before"]
    else:
        assert best.program.digest == plain[0].program.digest
    with pfdiff.load(out) as engine:
        assert engine.programs[3].digest == best.program.digest


def test_conditions_of_the_seeds():
    label, shift = CONDITIONS
    contract = replace(CONTRACT, conditions=(label,))
    (labels,) = conditions_of(contract, None, [0, 4, 5])
    assert labels.tolist() == [0, 1, 2]  # each label in turn
    (labels,) = conditions_of(contract, {"label": ["two", "one"]}, [7, 8, 9])
    assert labels.tolist() == [1, 2, 1]  # seed 7 takes the second, as in a bulk run
    (labels,) = conditions_of(contract, {"label": 5}, [7, 8])
    assert labels.tolist() == [5, 5]
    (shifts,) = conditions_of(replace(CONTRACT, conditions=(shift,)), {"shift": np.ones((3, 1))}, [1, 2])
    assert shifts.shape == (2, 3, 1)
    with pytest.raises(pfdiff.InputError, match="unknown condition 'text'"):
        conditions_of(contract, {"text": 1}, [0])
