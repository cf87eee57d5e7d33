"""Refining with a small budget: regression alone, judged by seeds that it was not fitted to, no worse than tuning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.errors import InputError
from pfdiff.engine.runtime.noise import noise
from pfdiff.quality.sampling.subject import BlackBox, Subject

from .test_refine_features import network

SEEDS = range(10_000, 10_064)
FEW: dict[str, Any] = {"solvers": ["ddim", "unipc:order=2"], "grids": ["trailing", "logsnr"], "threads": 1}


class Pull(torch.nn.Module):
    """The exact flow to points at 0.6 and -0.6 with deviation 0.1, each element by itself."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(-1, *[1] * (x.dim() - 1)).clamp(1e-3, 1)
        variance = (0.1 * (1 - t)) ** 2 + t**2
        side = torch.tanh(x * 0.6 * (1 - t) / variance)
        clean = 0.6 * side + 0.01 * (1 - t) / variance * (x - 0.6 * (1 - t) * side)
        return (x - clean) / t


def error_of(program: pfdiff.Program) -> float:
    """RMS distance of its samples to those of 100 evaluations of DPM-Solver++(2M), by NumPy."""
    source = network()
    contract = source.contract
    exact = pfdiff.compile("dpm++:2m", contract.schedule, 100, "uniform", prediction=contract.prediction)
    start = noise(SEEDS, contract.shape).numpy()
    with Subject.of(source).opened("torch", 1) as backend:
        box = BlackBox(backend, contract, [])
        samples = [
            np.clip(one.evaluate(lambda x, t: box(x.astype(np.float32), t, np.arange(len(x))), start), -1, 1)
            for one in (exact, program)
        ]
    return math.sqrt(float(np.mean((samples[1] - samples[0]) ** 2)))


def test_a_refined_sampler_is_better_than_the_tuned_of_the_same_small_budget() -> None:
    budget = 1300
    tuned = pfdiff.tune(network(), 3, budget=budget, **FEW)
    refined = pfdiff.tune(network(), 3, budget=budget, refine=True, **FEW)
    record = refined.refinement
    assert record is not None
    assert refined.evaluations <= budget
    assert (record["method"], record["validation_seeds"]) == ("regression", 0)
    assert record["kept"]
    assert record["held_out_after"] < record["held_out_before"]
    assert error_of(refined[0].program) < 0.9 * error_of(tuned[0].program)


def test_the_smallest_budgets_belong_to_the_search() -> None:
    tuned = pfdiff.tune(network(), 3, budget=700, **FEW)
    refined = pfdiff.tune(network(), 3, budget=700, refine=True, **FEW)
    assert refined.refinement is not None
    assert refined.refinement["skipped"].startswith("not refined: behind the reference budget 700 pays for fewer than")
    assert [one.program.digest for one in refined] == [one.program.digest for one in tuned]


@pytest.mark.parametrize(("elements", "told"), [(1, True), (2, True), (64, False)])
def test_a_table_is_not_fitted_to_fewer_elements_than_tell_it(elements: int, told: bool) -> None:
    source = pfdiff.Network(Pull(), shape=(elements,), schedule="flow", prediction="flow", name=f"pull {elements}")
    words: dict[str, Any] = {"solvers": ["ddim", "pfdiff:k=2,l=1"], "budget": 2000, "threads": 1}
    refined = pfdiff.tune(source, 5, refine=True, **words)
    record = refined.refinement
    assert record is not None
    said = f"not refined: budget 2000 pays for 5 samples to fit a table to, expected {12 // elements} or more"
    assert record.get("skipped", "").startswith(said) == told
    if told:
        tuned = pfdiff.tune(source, 5, **words)
        assert [one.program.digest for one in refined] == [one.program.digest for one in tuned]
    else:
        assert record["method"] == "regression"


def test_without_held_out_seeds_those_judge_that_no_step_has_watched() -> None:
    refined = pfdiff.tune(network(), 3, budget=12_000, refine=True, held_out=0, **FEW)
    record = refined.refinement
    assert record is not None
    assert record["judging_seeds"] >= 4
    assert record["judging_seeds"] - record["validation_seeds"] in (0, 1)
    assert record["kept"] == (record["gain"] > record["gain_standard_error"])
    assert record["held_out_after"] is None


def test_without_seeds_that_judge_nothing_is_refined() -> None:
    with pytest.raises(InputError, match="leaves no seeds that judge a refined sampler; give --held-out 4"):
        pfdiff.tune(network(), 3, budget=1500, refine=True, held_out=0, **FEW)


def test_what_is_advised_for_too_small_a_budget_is_taken() -> None:
    """Refining of two elements needs seeds of its own, which fewer seeds for the search do not spare."""
    source = pfdiff.Network(Pull(), shape=(2,), schedule="flow", prediction="flow")
    words: dict[str, Any] = {**FEW, "refine": True, "buffers": 1}
    with pytest.raises(InputError, match=r"give at least 4032, or leave refine out$"):
        pfdiff.tune(source, 5, budget=2000, **words)
    assert pfdiff.tune(source, 5, budget=4032, **words)
