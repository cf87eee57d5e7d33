"""quality/criteria/cost.py: a search that makes small what a user's function says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfdiff
from pfdiff.quality.criteria.cost import Cost

from ..small.engine import write_engine

FEW: dict[str, Any] = {
    "calibration": 4,
    "held_out": 3,
    "solvers": ["ddim", "dpm++:2m", "ddpm"],
    "grids": ["uniform", "logsnr"],
    "bases": ["eps"],
    "local": False,
}
FILE = """
from beside import FACTOR

def cost(engine, nfe, seeds):
    with open("calls.txt", "a") as file:
        file.write(f"{nfe} {list(seeds)}\\n")
    return FACTOR * float(engine.sample(seeds=seeds, nfe=nfe).abs().mean())

word = 5
"""


def engine_at(folder: Path) -> Path:
    """An engine whose programs start where a search does."""
    return write_engine(folder, nfe=(3,)).path


def test_the_smallest_cost_wins_and_is_what_the_function_says(tmp_path: Path) -> None:
    path = engine_at(tmp_path / "small.engine")

    def cost(engine: pfdiff.Engine, nfe: int, seeds: Sequence[int]) -> float:
        return float(engine.sample(seeds=seeds, nfe=nfe).abs().mean())

    ranking = pfdiff.tune(path, 3, criterion=cost, out=path, backend="onnxruntime", threads=1, **FEW)
    found = ranking[1:] if ranking.keeps else ranking[:]  # the engine's own may stay, in front
    assert {"ddim", "dpm++:2m", "ddpm"} == {one.solver for one in found}  # also what draws noise on the way
    assert ranking.criterion == "cost"
    assert [one.error for one in found] == sorted(one.error for one in found)
    with pfdiff.load(path, backend="onnxruntime", threads=1) as engine:  # which holds the winner now
        assert engine.programs[3].digest == ranking[0].program.digest
        whole = [cost(engine, 3, [seed]) for seed in range(4)]
    # The seeds of a search are some of its own; its winner is no worse than DDIM on them, as the ranking says.
    assert ranking[0].error > 0
    assert np.isfinite(whole).all()
    ddim = next(one for one in found if one.solver == "ddim")
    assert found[0].error <= ddim.error
    assert ranking[0].held_out_error is not None


def test_a_file_is_asked_once_for_each_candidate_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "own.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("FACTOR = 2.0\n")
    path = engine_at(tmp_path / "small.engine")
    first = pfdiff.tune(path, 3, criterion="own.py:cost", backend="onnxruntime", threads=1, **FEW)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert calls
    assert len(set(calls)) <= len(calls)
    again = pfdiff.tune(path, 3, criterion="own.py:cost", backend="onnxruntime", threads=1, **FEW)
    assert (tmp_path / "calls.txt").read_text().splitlines() == calls  # all of it from the cache
    assert [one.error for one in again] == [one.error for one in first]
    assert again.cached == again.evaluations
    (tmp_path / "beside.py").write_text("FACTOR = 3.0\n")
    third = pfdiff.tune(path, 3, criterion="own.py:cost", backend="onnxruntime", threads=1, **FEW)
    np.testing.assert_allclose([one.error for one in third], [1.5 * one.error for one in first], rtol=1e-6)


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        ("own.py:none", "has no function 'none'"),
        ("own.py:word", "has no function 'word'"),
        ("missing.py:cost", "a file that is there"),
        ("own.py", "expected module.py:function"),
        ("broken.py:cost", "cannot be imported"),
        ("leaves.py:cost", "cannot be imported"),
        (5, "got int, expected a function"),
    ],
)
def test_what_is_no_criterion_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("FACTOR = 2.0\n")
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(pfdiff.InputError, match=said):
        Cost.of(criterion)


@pytest.mark.parametrize("value", [-1.0, float("nan"), "high", None])
def test_what_is_no_cost_is_refused(tmp_path: Path, value: Any) -> None:
    path = engine_at(tmp_path / "small.engine")
    with pytest.raises(pfdiff.InputError, match="expected a number of at least 0"):
        pfdiff.tune(path, 3, criterion=lambda *given: value, backend="onnxruntime", threads=1, **FEW)


@pytest.mark.parametrize("raised", [RuntimeError("the robot fell\nover"), KeyError("goal"), SystemExit(3)])
def test_a_cost_that_raises_is_named_in_one_line(tmp_path: Path, raised: BaseException) -> None:
    path = engine_at(tmp_path / "small.engine")

    def cost(*given: Any) -> float:
        raise raised

    words = rf"criterion cost: it raised {type(raised).__name__} \(.*\) with nfe 3 and \d+ seeds"
    with pytest.raises(pfdiff.InputError, match=words) as refused:
        pfdiff.tune(path, 3, criterion=cost, backend="onnxruntime", threads=1, **FEW)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is raised


def test_a_criterion_goes_with_nothing_of_the_metrics(tmp_path: Path) -> None:
    path = engine_at(tmp_path / "small.engine")
    for options, said in (
        ({"metric": "fd"}, "got a metric and a criterion"),
        ({"refine": True}, "takes no pictures, features, reference or refine"),
        ({"reference": 5}, "takes no pictures, features, reference or refine"),
    ):
        with pytest.raises(pfdiff.InputError, match=said):
            pfdiff.tune(path, 3, criterion=lambda *given: 1.0, **{**FEW, **options})
