"""What is printed of a ranking and of a comparison: tables of a few lines, one line for repr, HTML for notebooks."""

from __future__ import annotations

import numpy as np

import pfdiff
from pfdiff.quality.comparison import Comparison, Point
from pfdiff.quality.criteria.error import doubt_of_range
from pfdiff.quality.ranking import Ranked, Ranking, error_text
from pfdiff.quality.sampling.budget import Budget
from pfdiff.quality.sampling.reference import Reference


def ranking(count: int = 40) -> Ranking:
    """`count` samplers on rules, each followed by one that differs in a time; DDIM is the last."""
    samplers: list[Ranked] = []
    for place in range(count):
        solver = "ddim" if place == count - 1 else f"pfdiff:k=2,l=1,name={place}"
        program = pfdiff.compile("ddim", "cosine:60", 4, "uniform", t_start=58)
        error = 0.01 * (1 + place)
        samplers += [Ranked(solver, "uniform", "eps", 58.0, None, error, error / 2, program)]
        samplers += [Ranked(solver, (58.0, 40.0, 9.0 + place, 2.0, -1.0), "eps", 58.0, None, error, None, program)]
        samplers += [Ranked(solver, (58.0, 40.0, 9.5 + place, 2.0, -1.0), "eps", 58.0, None, error, None, program)]
    reference = Reference("ddim", "uniform", 59)
    words = {"evaluations": 99, "cached": 0, "seconds": 1.0, "complete": True, "refinement": None}
    return Ranking(samplers, nfe=4, calibration=16, held_out=32, criterion="RMS distance", reference=reference, **words)


def test_a_ranking_prints_as_a_table_without_gaps() -> None:
    lines = str(ranking()).splitlines()
    assert lines[0] == "NFE 4: RMS distance, 16 calibration and 32 held-out seeds"
    assert lines[1].split() == ["rank", "solver", "grid", "basis", "start", "error", "held", "out"]
    rows = [line.split() for line in lines[2:-1]]
    assert [row[0] for row in rows] == [*(str(rank) for rank in range(1, 11)), "79"]  # the last is the best DDIM
    assert rows[0] == ["1", "pfdiff:k=2,l=1,name=0", "uniform", "eps", "58", "0.0100", "0.0050"]
    assert rows[1][2:5] == ["5", "given", "times"]
    assert rows[-1][1] == "ddim"
    assert lines[-1] == "held out: only the best on the calibration seeds are judged on them, 6 here"
    assert max(map(len, lines)) <= 80


def test_reprs_are_one_short_line() -> None:
    found = ranking()
    for one in (found, found[0], found[0].program):
        assert "\n" not in repr(one)
        assert len(repr(one)) < 200
    assert repr(found[0]) == "Ranked(pfdiff:k=2,l=1,name=0, uniform/eps from 58: error 0.0100, held out 0.0050)"
    assert repr(found).startswith("Ranking(NFE 4, 120 samplers; best Ranked(pfdiff:k=2,l=1,name=0, ")
    program = pfdiff.compile("pfdiff:k=2,l=1", "linear:1000", 8, "uniform", prediction="v", clip=1.5)
    assert repr(program) == (
        "Program(pfdiff:k=2,l=1, NFE 8: linear:1000 from 999, grid uniform, basis eps, predicts v, clip 1.5, 2 buffers)"
    )


def test_notebooks_get_tables() -> None:
    html = ranking()._repr_html_()
    assert html.count("<tr>") == 12
    assert "<th>held out</th>" in html
    program = pfdiff.compile("ddim", "linear:1000", 3, "uniform")
    html = program._repr_html_()
    assert html.count("<tr>") == 5
    assert f"<td>{program.table[3, 0]:.4g}</td>" in html


def test_a_comparison_prints_as_one_line_and_as_a_table() -> None:
    points = (
        Point("ddim", "uniform", "eps", 4, 0.25, "", None),
        Point("ddim", "uniform", "eps", 8, 0.0001, "", None),
        Point("<heun>", "uniform", "eps", 4, 0.5, "", None),
        Point("<heun>", "uniform", "eps", 8, None, "not finite", None),
    )
    empty = pfdiff.noise([], (1,)).numpy()
    found = Comparison(
        network="net",
        points=points,
        samplers=("ddim", "<heun>"),
        nfe=(4, 8),
        seeds=2,
        reference=Reference("ddim", "uniform", 59),
        evaluations=1,
        cached=0,
        seconds=1.0,
        data_range=(-1, 1),
        samples={},
        reference_samples=empty,
    )
    assert repr(found) == "Comparison(net: 2 samplers at NFE 4, 8, 2 seeds)"
    assert found.table() == [["ddim", "uniform", "0.2500", "1.0e-04"], ["<heun>", "uniform", "0.5000", ""]]
    assert "<td>&lt;heun&gt;</td><td>uniform</td><td>0.5000</td><td></td>" in found._repr_html_()


def test_small_errors_keep_their_digits() -> None:
    assert [error_text(one) for one in (None, 0.12345, 0.00012345)] == ["", "0.1235", "1.2e-04"]


def test_empty_held_out_cells_and_a_doubt_are_explained() -> None:
    found = ranking(1)
    assert [one.held_out_error is None for _, one in found.shown()] == [False, True]
    assert found.held_out_note == "held out: only the best on the calibration seeds are judged on them, 1 here"
    found.doubt = doubt_of_range(np.array([[3.0, 4.0, -2.0, 0.0]]), (-1.0, 1.0))
    assert found.doubt is None
    found.doubt = doubt_of_range(np.array([[3.0, 4.0, -2.0, 7.0]]), (-1.0, 1.0))
    assert found.doubt is not None
    assert found.doubt.startswith("100 % of the reference's values lie outside of the data's range -1..1")
    assert str(found).splitlines()[-2:] == [found.held_out_note, found.doubt]


def test_a_budget_in_seconds_pays_for_what_is_left_when_evaluations_begin() -> None:
    budget = Budget(seconds=10.0)
    budget.assumed = 100.0
    budget.start -= 6.0
    assert 390 <= budget.affords() <= 400
