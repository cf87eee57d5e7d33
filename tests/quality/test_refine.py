"""Refinement: the Jacobian against differences of whole runs, tables that stay consistent, and the guard."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.cache import Journal
from pfdiff.quality.criteria.error import ErrorCriterion
from pfdiff.quality.refining.jacobian import Line, at_times, moved, time_gaps
from pfdiff.quality.refining.refine import Refinement, dense_table, finished
from pfdiff.quality.sampling.budget import Budget

from ..oracle import Mixture
from .analytic import mixture_pool

CASES = [
    ("pfdiff:k=2,l=1", "linear:1000", "eps", None),
    ("ipndm:order=3", "linear:1000", "v", None),
    ("ddim", "vp", "x0", 1.0),
    ("pfdiff:k=1,l=1", "edm", "edm", None),
    ("dpm++:2m", "edm", "edm", 1.0),
    ("pfdiff:k=2,l=1", "flow:shift=3", "flow", None),
]


def judge_of(
    schedule: str, prediction: str, seeds: int = 24, journal: Journal | None = None
) -> tuple[ErrorCriterion, list[int]]:
    """A judge whose targets are 60 evaluations of DPM-Solver++(2M); elements differ, as pixels do."""
    pool, calls = mixture_pool(schedule, prediction, 1, seeds, 40)
    truth = pfdiff.compile("dpm++:2m", schedule, 60, "uniform", prediction=prediction)
    judge = ErrorCriterion(pool, pool.sample(truth, np.arange(seeds)), (-1.5, 1.5), Budget(), journal)
    return judge, calls


def program_of(solver: str, schedule: str, prediction: str, clip: float | None, nfe: int = 4) -> pfdiff.Program:
    return pfdiff.compile(solver, schedule, nfe, "uniform", prediction=prediction, clip=clip)


@pytest.mark.parametrize(("solver", "schedule", "prediction", "clip"), CASES)
def test_dense_table_is_that_of_the_trace(solver, schedule, prediction, clip):
    program = program_of(solver, schedule, prediction, clip)
    scale = np.abs(program.table).max()
    np.testing.assert_allclose(dense_table(program, program.basis), program.table, atol=1e-9 * scale)


@pytest.mark.parametrize(("solver", "schedule", "prediction", "clip"), CASES)
def test_columns_are_what_a_moved_program_does(solver, schedule, prediction, clip):
    judge, _ = judge_of(schedule, prediction)
    program, rows = program_of(solver, schedule, prediction, clip), np.arange(8)
    line = Line(judge, program, rows)
    parameters = line.parameters()
    assert {one.n for one in parameters} == set(range(4))
    assert any(one.j < 0 for one in parameters)
    for place, one in enumerate(parameters):
        ends_first = one.n == 3 and program.times[3] < 0.0021  # below it nothing is known
        by = 0.01 if one.j >= 0 else 0.02 if ends_first else -0.02
        after = moved(program, parameters, by * np.eye(len(parameters))[place])
        by = by if one.j >= 0 else (after.times - program.times)[one.n] / one.time  # whole where times are
        difference = (judge.pool.sample(after, rows) - line.states[-1][0]) / by
        column = line.column(one)
        assert np.abs(column - difference).max() <= 0.02 * np.abs(difference).max() + 1e-2, (one.n, one.j)


def test_parameters_are_two_for_each_buffer_and_update():
    judge, _ = judge_of("linear:1000", "v")
    for solver in ("ddim", "pfdiff:k=2,l=1", "ipndm:order=3"):
        program = program_of(solver, "linear:1000", "v", None, nfe=6)
        counts = np.bincount([one.n for one in Line(judge, program, np.arange(8)).parameters() if one.j >= 0])
        assert counts[0] == 2
        assert counts[-1] <= program.buffers + 1
        assert counts.max() <= 2 * program.buffers


@pytest.mark.parametrize(("solver", "schedule", "prediction", "clip"), CASES)
def test_refined_program_is_better_on_seeds_it_never_saw(solver, schedule, prediction, clip):
    judge, _ = judge_of(schedule, prediction)
    start = program_of(solver, schedule, prediction, clip)
    step = Refinement(judge, np.arange(8), np.arange(8, 16)).run(start, 8)
    program, rows = finished(step.program, start.solver), np.arange(16, 24)
    before, after = (np.sqrt(judge.square(one, rows) / 8) for one in (start, program))
    assert after < 0.9 * before
    assert (program.nfe, program.buffers) == (start.nfe, start.buffers)
    assert program.solver == f"{start.solver} refined"
    assert list(step.training) == sorted(step.training, reverse=True)

    # The file form, the dense table and the updates say the same.
    again = pfdiff.Program.from_json(program.to_json())
    assert again.digest == program.digest
    oracle, noise = Mixture.of(schedule, 3), judge.pool.noise[:2].astype(np.float64)
    expected = program.evaluate(oracle.network(prediction), noise)
    np.testing.assert_allclose(judge.pool.sample(again, np.arange(2)), expected, rtol=1e-3, atol=5e-3)
    np.testing.assert_allclose(dense_table(program, program.basis), program.table, rtol=1e-12)


def test_last_row_is_the_least_squares_solution():
    judge, _ = judge_of("linear:1000", "eps")
    start = program_of("ddim", "linear:1000", "eps", None)
    spoilt = replace(start, w=start.w * np.array([[1], [1], [1], [0.7]]))
    refinement = Refinement(judge, np.arange(8), np.arange(8, 16))
    found = refinement._with_last_row(spoilt)
    assert found is not None
    assert found[1] <= np.sqrt(judge.square(start, np.arange(8)) / 8)


@pytest.mark.parametrize(
    ("solver", "schedule", "prediction", "nfe"),
    [("pfdiff:k=2,l=1", "flow", "flow", 4), ("pfdiff:k=2,l=1", "cosine:60", "v", 8), ("ddim", "cosine:60", "v", 30)],
)
def test_times_stay_apart_and_inside(solver, schedule, prediction, nfe):
    program = program_of(solver, schedule, prediction, None, nfe)
    first, last = (0.001, 1) if schedule == "flow" else (0, 59)
    assert (np.sum(time_gaps(program) > 0) > 1) == (nfe < 30)
    judge, _ = judge_of(schedule, prediction, seeds=2)
    parameters = Line(judge, program, np.arange(2)).parameters()
    for sign in (1, -1):
        times = moved(program, parameters, np.array([sign * 99.0 if one.j < 0 else 0.0 for one in parameters])).times
        assert (np.diff(times) < 0).all()
        assert first <= times.min() <= times.max() <= last
        assert schedule == "flow" or (times == np.rint(times)).all()


def test_edm_times_move_everything_the_network_is_fed():
    start = program_of("ddim", "edm", "edm", 1.0)
    after = at_times(start, start.times * 0.9 + 0.01)
    fresh = pfdiff.compile("ddim", "edm", 4, [*(start.times * 0.9 + 0.01), 0.0], prediction="edm", clip=1.0)
    for name in ("times", "network_times", "c_in", "p", "q"):
        np.testing.assert_allclose(getattr(after, name), getattr(fresh, name), rtol=1e-12)


def test_early_stop_gives_what_was_best_on_the_validation_seeds():
    judge, _ = judge_of("linear:1000", "eps")
    targets = judge.targets.copy()
    targets[8:16] = -targets[8:16]  # what is learnt from the training seeds is wrong here
    judge.targets = targets
    start = program_of("pfdiff:k=2,l=1", "linear:1000", "eps", None)
    step = Refinement(judge, np.arange(8), np.arange(8, 16)).run(start, 30)
    assert step.validation[-1] == min(step.validation)


def test_refinement_is_resumed_and_bounded(tmp_path):
    start = program_of("pfdiff:k=2,l=1", "linear:1000", "eps", None)
    judge, calls = judge_of("linear:1000", "eps", journal=Journal(tmp_path / "journal.jsonl"))
    whole = Refinement(judge, np.arange(8), np.arange(8, 16)).run(start, 3)
    used, spent = len(calls), judge.budget.spent
    again, fresh = judge_of("linear:1000", "eps", journal=Journal(tmp_path / "journal.jsonl"))
    before = len(fresh)
    resumed = Refinement(again, np.arange(8), np.arange(8, 16)).run(start, 3)
    assert resumed.program.digest == whole.program.digest
    assert len(fresh) == before + 4  # the start is run again, to know its error
    assert (again.budget.spent, again.budget.cached) == (spent, spent - 4 * 8)
    assert used > 60

    bounded, _ = judge_of("linear:1000", "eps")
    bounded.budget.evaluations = 500
    Refinement(bounded, np.arange(8), np.arange(8, 16)).run(start, 30)
    assert bounded.budget.spent <= 500


def test_a_journal_that_is_damaged_or_read_only_stops_nothing(tmp_path):
    start = program_of("pfdiff:k=2,l=1", "linear:1000", "eps", None)

    def run(path):
        judge, _ = judge_of("linear:1000", "eps", journal=Journal(path))
        return Refinement(judge, np.arange(8), np.arange(8, 16)).run(start, 2).program.digest

    whole = run(tmp_path / "journal.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    wrong = (3, "x", None, [], {}, {"evaluations": "many"}, {"evaluations": 1, "program": {}, "damping": 1})
    changed = [json.dumps([key, wrong[number % len(wrong)]]) for number, (key, _) in enumerate(lines)]
    (tmp_path / "journal.jsonl").write_text("\n".join(changed))
    assert run(tmp_path / "journal.jsonl") == whole
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be written"):
        assert run(tmp_path / "file" / "journal.jsonl") == whole
