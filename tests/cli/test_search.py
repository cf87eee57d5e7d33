"""What `pfdiff tune` and `pfdiff compare` print, and the options that stand for a network."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.cli import main
from pfdiff.cli.arguments.networks import network_arguments
from pfdiff.cli.info import _search
from pfdiff.cli.tune import _report, print_ranking
from pfdiff.quality.sampling.reference import Reference
from pfdiff.quality.tune import Ranked, Ranking

from ..small.engine import write_engine

SWEPT = [(58.0, 40.0 - moved, 9.0, 2.0, -1.0) for moved in range(12)]


def ranking(complete: bool = True) -> Ranking:
    """Twelve samplers that differ in one time, then one on a rule, and DDIM."""

    def ranked(solver: str, grid: str | tuple[float, ...], error: float) -> Ranked:
        program = pfdiff.compile(solver, "cosine:60", 4, grid=grid, t_start=58)
        return Ranked(solver, grid, "eps", 58.0, None, error, error if complete else None, program)

    samplers = [ranked("ipndm:order=3", grid, 1e-5 * (1 + place)) for place, grid in enumerate(SWEPT)]
    samplers += [ranked("ipndm:order=3", "logsnr", 0.03), ranked("ddim", "uniform", 0.12)]
    words = {
        "criterion": "RMS distance",
        "reference": Reference("ddim", "uniform", 59),
        "cached": 0,
        "refinement": None,
    }
    return Ranking(
        samplers, nfe=4, calibration=16, held_out=32, evaluations=99, seconds=1.0, complete=complete, **words
    )


def test_samplers_that_differ_in_one_time_are_one_row(capsys):
    print_ranking(ranking())
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0].isdigit() and "eps" in line]
    assert [(row[0], row[1]) for row in rows] == [("1", "ipndm:order=3"), ("2", "ipndm:order=3"), ("3", "ddim")]
    assert [row[-1] for row in rows] == ["1.0e-05", "0.0300", "0.1200"]
    assert "times of 1: 58,40,9,2,-1" in lines


def test_the_times_of_a_refined_sampler_are_those_that_it_has(capsys):
    start = ranking()[0]
    program = replace(start.program, solver="ipndm:order=3 refined", times=np.array([57.0, 41.0, 10.0, 1.0]))
    refined = replace(start, solver=program.solver, program=program)
    found = ranking()
    found.insert(0, refined)
    print_ranking(found)
    lines = capsys.readouterr().out.splitlines()
    assert "times of 1: 57,41,10,1" in lines
    best = {"solver": refined.solver, "grid": [58, 40], "error": None, "held_out_error": None}
    record = {"nfe": 4, "ranking": [best]}
    kept = {"kept": True, "training_seeds": 16, "buffers": 3}
    assert _search(record | {"refinement": kept}).startswith("NFE 4: ipndm:order=3 refined from [58, 40]")
    assert _search(record).startswith("NFE 4: ipndm:order=3 refined on [58, 40]")


def test_a_spent_budget_says_what_was_left_out(capsys):
    print_ranking(ranking(complete=False))
    assert "without held-out seeds and refining" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("made", "said"), [({}, "changed nothing"), ({"gain": -1e-5, "gain_standard_error": 1e-5}, "no more than chance")]
)
def test_what_refining_did_not_gain_is_told_apart(capsys, made, said):
    record = {"from": "ddim", "kept": False, "steps": 0, "held_out_before": 0.1, "held_out_after": None, **made}
    found = ranking()
    found.refinement = record
    print_ranking(found)
    assert said in " ".join(capsys.readouterr().out.split())


def test_options_become_the_words_of_network():
    names = ("shape", "output_name", "input_name", "time_name", "condition", "schedule", "guidance")
    options = dict.fromkeys(names) | {"shape": "3x8x8", "output_name": "1", "schedule": "vp", "nfe": "5"}
    words = network_arguments("nets.py:unet", options)
    assert (words["shape"], words["output"], words["schedule"]) == ((3, 8, 8), 1, "vp")
    assert words.keys() <= pfdiff.Network.__init__.__annotations__.keys()
    assert network_arguments("unet.onnx", options)["output"] == "1"


@pytest.mark.parametrize("command", ["build", "tune", "compare"])
def test_every_word_of_a_network_has_its_option(command):
    from typer.main import get_command

    from pfdiff.cli import app

    group = get_command(app)
    parameters = {one.name for one in group.commands[command].params}  # type: ignore[attr-defined]
    wanted = {"shape", "schedule", "prediction", "input_name", "time_name", "output_name", "condition"}
    assert wanted | {"time_scale", "time_dtype", "learned_sigma", "sigma_data", "guidance"} <= parameters


# On an engine.
@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_engine(tmp_path / "small.engine", nfe=(4,))
    return tmp_path / "small.engine"


QUICK = ["--nfe", "4", "--solver", "ddim", "--reference", "20", "--calibration", "2"]


def test_several_values_of_a_condition_are_taken_in_turn(engine: Path):
    words = ["--label", "3,5", "--seeds", "3", "--grid", "logsnr", "--csv", "found.csv"]
    assert main(["compare", engine.name, *QUICK, *words]) == 0
    found = list(csv.DictReader(Path("found.csv").read_text().splitlines()))
    expected = [
        pfdiff.compare(engine, 4, ["ddim"], grid="logsnr", reference=20, seeds=3, conditions={"label": labels})
        for labels in ([3, 5], 3)
    ]
    errors = [f"{one.points[0].error:.6g}" for one in expected]
    assert [row["error"] for row in found] == errors[:1]
    assert errors[0] != errors[1]


def test_a_search_without_held_out_seeds(engine: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tune", engine.name, *QUICK, "--held-out", "0", "--label", "2"]) == 0
    assert "2 calibration and 0 held-out seeds" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["tune", "compare"])
@pytest.mark.parametrize(
    "words",
    [
        ["--prediction", "v"],
        ["--shape", "3x8x8"],
        ["--schedule", "vp"],
        ["--condition", "x:int64"],
        ["--learned-sigma"],
    ],
    ids=lambda words: words[0],
)
def test_an_engine_is_not_described_again(
    engine: Path, capfd: pytest.CaptureFixture[str], command: str, words: list[str]
):
    assert main([command, engine.name, *QUICK, *words]) == 2
    assert capfd.readouterr().err == (
        f"pfdiff: small.engine is an engine, which has its own {words[0]}; leave it out\n"
    )


def test_a_comparison_without_a_figure_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = write_engine(tmp_path / "small.engine").path
    words = ["--backend", "onnxruntime", "--seeds", "2", "--reference", "4", "--csv", str(tmp_path / "x.csv")]
    assert main(["compare", str(engine), "--nfe", "1", "--solver", "dpm-solver:order=2", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("pfdiff: nothing could be compared: ")
    assert printed.err.count("\n") == 1
    assert (tmp_path / "x.csv").exists()


def test_a_search_says_that_no_engine_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    _report([ranking()], None, None)
    assert capsys.readouterr().out.splitlines()[-1].startswith("no engine is written; with -o ENGINE ")
    _report([ranking()], None, Path("e.engine"))
    assert capsys.readouterr().out.splitlines()[-1] == "e.engine: NFE 4, each with its best sampler"
