"""`tune(..., out=ENGINE)`: a program that the engine holds already stays unless the search finds a better one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfdiff
from pfdiff.cli.tune import print_ranking
from pfdiff.engine.artifact import read_artifact, write_manifest
from pfdiff.engine.compiler.program import Program
from pfdiff.export.engine_directory import extended

from ..small.engine import write_engine

WORDS: dict[str, Any] = {
    "calibration": 3,
    "held_out": 4,
    "reference": 40,
    "grids": ["uniform"],
    "bases": ["eps"],
    "local": False,
    "backend": "onnxruntime",
    "threads": 1,
}
GOOD, BAD = "ipndm:order=3", "ddim"


def stored(out: Path, solver: str, grid: str = "uniform", record: dict[str, Any] | None = None) -> Program:
    """Put another program of 6 evaluations into the engine."""
    artifact = read_artifact(out)
    one = pfdiff.compile(solver, artifact.contract.schedule, 6, grid=grid, prediction="eps", t_start=999)
    write_manifest(extended(replace(artifact), {6: one}, {6: record} if record else {}))
    return one


def error(out: Path, program: Program) -> float:
    """RMS to many steps on other seeds."""
    with pfdiff.load(out, backend="onnxruntime", threads=1) as engine:
        many = pfdiff.compile("ipndm:order=3", program.schedule, 200, grid="uniform", prediction="eps", t_start=999)
        found, truth = (
            engine.with_programs({one.nfe: one}).sample(seeds=range(100, 132), label=np.arange(32) % 10).numpy()
            for one in (program, many)
        )
    return float(np.sqrt(np.mean((found - truth) ** 2)))


@pytest.mark.parametrize("held_out", [0, 4])
def test_a_better_program_stays(tmp_path: Path, held_out: int, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_engine(tmp_path / "e").path
    better = stored(out, GOOD, record={"kept": True})
    assert error(out, better) < error(out, pfdiff.compile(BAD, "linear:1000", 6, grid="uniform", t_start=999))
    before = (out / "engine.json").read_bytes()
    ranking = pfdiff.tune(out, 6, **{**WORDS, "held_out": held_out}, solvers=[BAD], out=out)
    assert (out / "engine.json").read_bytes() == before
    assert ranking[0].program.digest == better.digest
    assert ranking.keeps
    assert (ranking[0].held_out_error is None) == (held_out == 0)
    assert ranking[0].error < ranking[1].error
    print_ranking(ranking)
    assert f"the {GOOD} that {out} holds is kept: " in " ".join(capsys.readouterr().out.split())


def test_a_worse_program_gives_way(tmp_path: Path) -> None:
    out = write_engine(tmp_path / "e").path
    worse = stored(out, BAD, record={"kept": True})
    ranking = pfdiff.tune(out, 6, **WORDS, solvers=[GOOD], out=out)
    after = read_artifact(out)
    assert after.programs[6].digest == ranking[0].program.digest != worse.digest
    assert after.provenance["search"]["6"]["nfe"] == 6
    assert ranking.stored is not None
    assert ranking.stored.startswith(f"the {BAD} that {out} holds gives way: ")


def test_a_program_that_no_evaluation_is_left_for_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is made to spend what was put by for the stored program."""
    out = write_engine(tmp_path / "e").path
    worse = stored(out, BAD)
    monkeypatch.setattr("pfdiff.quality.tune.evaluations_of", lambda *rest: 0)
    spent = pfdiff.tune(out, 6, **WORDS, solvers=[GOOD]).evaluations
    ranking = pfdiff.tune(out, 6, **WORDS, solvers=[GOOD], out=out, budget=spent)
    assert read_artifact(out).programs[6].digest == worse.digest == ranking[0].program.digest
    assert ranking.stored is not None
    assert ranking.stored.endswith("the budget did not pay for judging it; give more")


def test_the_same_program_is_not_judged_twice(tmp_path: Path) -> None:
    out = write_engine(tmp_path / "e").path
    first = pfdiff.tune(out, 6, **WORDS, solvers=[GOOD], out=out)
    again = pfdiff.tune(out, 6, **WORDS, solvers=[GOOD], out=out)
    assert len(again) == len(first)
    assert again.stored is None
