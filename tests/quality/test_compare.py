"""Errors side by side: the numbers, the table, the plot, the pictures, the command line."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import pfdiff
from pfdiff.cli.compare import print_comparison
from pfdiff.quality.compare import SOLVERS, parse_sampler
from pfdiff.quality.comparison import _range_of

from ..small.engine import write_engine
from .analytic import SCHEDULE, Analytic

SETTINGS: dict[str, Any] = {"seeds": 4, "calibration": 4, "t_start": 58}
TUNED: dict[str, Any] = {"calibration": 4, "held_out": 4, "t_start": 58}


def test_compare_writes_table_plot_and_pictures(network, tmp_path):
    endings = {"out": "png", "csv": "csv", "sheet": "png"}
    paths: dict[str, Any] = {name: tmp_path / f"{name}.{ending}" for name, ending in endings.items()}
    solvers = ["ddim", "pfdiff:k=2,l=1@uniform/x0", "dpm++:2s"]
    result = pfdiff.compare(network, [3, 6], solvers, **SETTINGS, **paths)
    rows = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    assert [(row["solver"], row["grid"], row["nfe"]) for row in rows[:4]] == [
        ("ddim", "angle", "3"),
        ("ddim", "angle:power=1.25", "6"),
        ("pfdiff:k=2,l=1", "uniform", "3"),
        ("pfdiff:k=2,l=1", "uniform", "6"),
    ]
    assert float(rows[1]["error"]) < float(rows[0]["error"])
    assert (rows[4]["error"], "use 2 or 4" in rows[4]["note"]) == ("", True)
    assert rows[5]["error"]
    for name in ("out", "sheet"):
        with Image.open(paths[name]) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100
    assert result.of("ddim")[1].error == pytest.approx(float(rows[1]["error"]), rel=1e-5)
    assert result.reference.nfe == 59


def test_an_engine_is_compared_with_the_sampler_that_it_holds(network, tmp_path):
    place = tmp_path / "small.engine"
    artifact = write_engine(place, nfe=(4,), solver="unipc:order=2", grid="uniform")
    settings: dict[str, Any] = {"seeds": 4, "reference": 12}
    result = pfdiff.compare(place, [4, 6], **settings)
    assert result.samplers == ("stored", *SOLVERS)
    mine, missing = result.of("stored")
    assert mine.program is not None
    assert mine.program.digest == artifact.programs[4].digest
    (same,) = pfdiff.compare(place, 4, ["unipc:order=2@uniform"], **settings).points
    assert mine.error == same.error
    assert result.table()[0][0].startswith("stored: ")
    assert missing.note == "no sampler of 6 evaluations is stored; stored: 4"
    with pytest.raises(pfdiff.InputError, match="has a grid and a basis of its own"):
        pfdiff.compare(place, 4, ["stored@logsnr"], **settings)
    (bare,) = pfdiff.compare(network, 3, ["stored"], **SETTINGS).points
    assert bare.note == "no sampler of 3 evaluations is stored; stored: none, as the network is no engine"


def test_the_table_names_the_grid_and_what_auto_stands_for(network, capsys):
    asked = ["auto", "ddim@best", "ddim", "ddim@59,30,10,-1"]
    result = pfdiff.compare(network, [3, 6], asked, **SETTINGS)
    rows = {row[0].partition(":")[0]: row for row in result.table()}
    assert result.columns == ["solver", "grid", "NFE 3", "NFE 6"]
    chosen = result.of("auto")
    for one in chosen:
        assert one.solver in rows["auto"][0]
    assert ("(3)" in rows["auto"][0]) == (chosen[0].solver != chosen[1].solver)
    best = [one.grid for one in result.of("ddim@best")]
    assert rows["ddim@best"][1] == (best[0] if best[0] == best[1] else f"{best[0]} (3), {best[1]} (6)")
    assert rows["ddim"][1] == "angle (3), angle:power=1.25 (6)"
    print_comparison(result)
    assert "angle (3), angle:power=1.25 (6)" in " ".join(capsys.readouterr().out.split())


def test_a_row_of_one_nfe_has_one_error_on_the_sheet():
    assert _range_of([0.1541, 0.1543]) == ["RMS 0.154"]
    assert _range_of([0.1, 0.2]) == ["RMS 0.200 to 0.100"]
    assert _range_of([]) == []


def test_errors_are_those_of_the_programs(network):
    result = pfdiff.compare(network, 5, ["ddim@trailing"], **SETTINGS)
    seeds = [(1 << 40) + i for i in range(4)]
    noise = pfdiff.noise(seeds, (1, 2, 2)).numpy().astype(np.float64)
    predict = Analytic().oracle.network()
    few = pfdiff.compile("ddim", SCHEDULE, 5, "trailing", t_start=58).evaluate(predict, noise)
    many = pfdiff.compile("ddim", SCHEDULE, 59, "uniform", t_start=58).evaluate(predict, noise)
    expected = math.sqrt(np.mean((few.clip(-1, 1) - many.clip(-1, 1)) ** 2))
    assert result.points[0].error == pytest.approx(expected, rel=1e-3)


def test_times_one_by_one_start_where_they_start(network):
    """At 59, where a rule starts at 58: no start was given that they could contradict."""
    grids = ("59,30,10,-1", "58,30,10,-1")
    points = pfdiff.compare(network, 3, [f"ddim@{grid}" for grid in grids], **SETTINGS).points
    assert [one.note for one in points] == ["", ""]
    with pytest.raises(pfdiff.InputError, match="grid '59,abc' is not a list of numbers"):
        pfdiff.compare(network, 3, ["ddim", "ddim@59,abc"], **SETTINGS)
    program = pfdiff.compile("ddim", SCHEDULE, 3, grids[0])
    assert points[0].program is not None
    np.testing.assert_array_equal(points[0].program.table, program.table)
    found = pfdiff.tune(network, 3, solvers=["ddim"], grids=[grids[0]], local=False, **TUNED)
    assert [(one.grid, one.t_start) for one in found] == [(grids[0], 59)]


def test_best_grid_is_chosen_on_other_seeds(network):
    best = pfdiff.compare(network, 5, ["ddim"], grid="best", **SETTINGS).points[0]
    fixed = pfdiff.compare(network, 5, [f"ddim@{best.grid}/{best.basis}"], **SETTINGS).points[0]
    assert best.error == pytest.approx(fixed.error)
    assert best.grid != "best"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ddim", ("ddim", "logsnr", None)),
        ("pfdiff:k=2,l=1@karras:rho=5/x0", ("pfdiff:k=2,l=1", "karras:rho=5", "x0")),
    ],
)
def test_sampler_words(text, expected):
    found = parse_sampler(text, "logsnr", None)
    assert (found.solver, found.grid, found.basis) == expected


@pytest.mark.parametrize("text", ["", "@logsnr", "ddim@", "ddim@logsnr/latent", "ddim@logsnr/"])
def test_sampler_refuses(text):
    with pytest.raises(pfdiff.InputError, match="expected solver, solver@grid"):
        parse_sampler(text, "logsnr", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nfe": []}, "nothing to compare"),
        ({"nfe": 4, "solvers": []}, "nothing to compare"),
        ({"nfe": 4, "seeds": range(8)}, r"seeds=range\(0, 8\), expected an integer of at least 1; the number of them"),
        ({"nfe": 4, "seeds": 0}, "seeds=0, expected an integer of at least 1"),
        ({"nfe": 4, "calibration": 0, "grid": "best"}, "calibration=0, expected an integer of at least 1"),
        ({"nfe": 4, "seed": -1}, "seed=-1, expected an integer of at least 0"),
        ({"nfe": 4, "out": "plot.jpg"}, "ends in '.jpg'"),
        ({"nfe": 4, "out": "plot.npy"}, "ends in .png, .svg or .pdf"),
        ({"nfe": 4, "out": "missing/plot.svg"}, "create it first"),
        ({"nfe": 4, "sheet": "sheet.npy"}, "ends in .png"),
        ({"nfe": 4, "csv": "missing/table.csv"}, "create it first"),
        ({"nfe": 4, "solvers": ["nonsense"], "out": "plot.png"}, "unknown solver .nonsense."),
    ],
)
def test_compare_refuses(network, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pfdiff.InputError, match=message):
        pfdiff.compare(network, **{**SETTINGS, **arguments})


def test_a_solver_that_draws_noise_is_refused_before_the_network_is_asked(network, monkeypatch):
    asked = "pfdiff.quality.compare.make_error_criterion"
    monkeypatch.setattr(asked, lambda *_: pytest.fail("the reference was solved"))
    with pytest.raises(pfdiff.InputError, match=r"ddpm draws noise on the way, .*; take a solver such as ddim"):
        pfdiff.compare(network, 4, ["ddim", "ddpm@best"], **{**SETTINGS, "seeds": 2})


class Drift(nn.Module):
    """A velocity that no grid is exact for."""

    def forward(self, x, t):
        return x * (1 + t.reshape(-1, 1, 1, 1))


def test_flows_are_compared_on_a_grid_that_they_have():
    flow = pfdiff.Network(Drift(), shape=(1, 2, 2), schedule="flow", prediction="flow")
    result = pfdiff.compare(flow, [4, 8], ["ddim"], seeds=2, reference=40)
    assert {one.grid for one in result.points} == {"angle", "angle:power=1.25"}
    coarse, fine = (one.error for one in result.points)
    assert coarse is not None
    assert fine is not None
    assert 0 < fine < coarse


def test_a_plot_without_points_says_why(network, tmp_path):
    with pytest.raises(pfdiff.InputError, match=r"nothing to plot; heun, NFE 5: .*use 4 or 6"):
        pfdiff.compare(network, 5, ["heun"], out=tmp_path / "c.png", **SETTINGS)
