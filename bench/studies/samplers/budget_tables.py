"""What a short search and a refinement find.

    python -m pfdiff.bench.studies.samplers.budget_tables --weights DIR --data DIR

search   `tune` with a budget of 4,000 evaluations, on MNIST and `fashion`
long     what a search of 60,000 to 105,000 evaluations found before searches had budgets, judged like the others
few      the same with 4 calibration and 4 held-out seeds and 3,300 evaluations
short    `tune --refine` with 32 calibration seeds and 7,200 evaluations
small    `tune` and `tune --refine` with 1,000 to 6,000 evaluations
guard    `tune --refine` with 8,000 evaluations on the small networks of the study of defaults

The errors are RMS distances to a reference (DDIM over all times for MNIST, UniPC-2 in 72 evaluations for `fashion`) on
64 seeds that no run has seen, of `small` on 256, of `guard` on 512. bench/results/search_budget.json; what is there is
not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfdiff
from pfdiff.quality.criteria.error import ErrorCriterion, make_error_criterion
from pfdiff.quality.sampling.budget import Budget
from pfdiff.quality.sampling.reference import Reference
from pfdiff.quality.sampling.seeds import HELD_OUT
from pfdiff.quality.sampling.subject import Subject
from pfdiff.quality.search.candidates import make_setting

from .small_networks import RECIPES, load

RESULTS = Path(__file__).parents[2] / "results" / "search_budget.json"
JUDGED, FIRST_JUDGED = 64, HELD_OUT + (1 << 30)
SCHEDULE = "cosine:60?beta_max=0.999"
SHAPES = {"moons": (2,), "digits": (1, 8, 8), "latent": (4, 7, 7)}
# Of search_NAME.json at commit e9258ea: solver, grid, basis, start and evaluations, refining included.
LONG: dict[tuple[str, int], tuple[str, list[int], str, float, int]] = {
    ("mnist", 5): (
        "pfdiff:k=3,l=1",
        [57, 53, 50, 47, 43, 42, 39, 33, 30, 27, 26, 19, 16, 10, 8, 6, 2, -1],
        "eps",
        57.0,
        60740,
    ),
    ("mnist", 8): ("ipndm:order=3", [58, 57, 54, 47, 38, 25, 7, 0, -1], "eps", 58.0, 104858),
    ("fashion", 5): (
        "pfdiff:k=2,l=1",
        [919, 819, 765, 689, 612, 513, 459, 394, 306, 229, 141, 76, 0, -1],
        "eps",
        919.0,
        80448,
    ),
    ("fashion", 8): (
        "pfdiff:k=2,l=1",
        [959, 856, 785, 704, 628, 556, 489, 445, 379, 313, 269, 217, 176, 150, 106, 78, 61, 30, 19, 13, 3, 0, -1],
        "eps",
        959.0,
        99606,
    ),
}
SMALL = (1000, 2000, 3000, 6000)
JUDGED_MORE = {"small": 256, "guard": 512}  # few seeds of a network can carry the error of 64
SHOWN = ("error", "before", "ddim", "evaluations", "processor_seconds")
WIDE = (-9.0, 9.0)  # of data that is not in -1..1


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="what small_networks has trained")
    parser.add_argument("--data", type=Path, required=True, help="folder with the MNIST network")
    parser.add_argument("--parts", nargs="+", default=["search", "long", "few", "short", "small", "guard"])
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    held: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in given.parts:
        for name, nfe, settings in runs(part):
            words = list(settings.values()) if part == "small" else [settings.get("seed", 0)]
            key = " ".join(map(str, (part, name, nfe, *words)))
            if key in held:
                continue
            network = networks(name, given.weights, given.data)
            if part == "long":
                held[key] = judged_long(network, name, nfe)
            else:
                held[key] = measured(network, nfe, settings, JUDGED_MORE.get(part, JUDGED))
            RESULTS.write_text(json.dumps(held, indent=1) + "\n")
            row = held[key]
            print(
                key,
                {one: row.get(one) for one in SHOWN},
                flush=True,
            )


def runs(part: str) -> list[tuple[str, int, dict[str, Any]]]:
    """(network, NFE, arguments of tune) of a part."""
    small = [name for name, recipe in RECIPES.items() if recipe.data in SHAPES]
    both = [(name, nfe) for name in ("mnist", "fashion") for nfe in (5, 8)]
    few: dict[str, Any] = {"calibration": 4, "held_out": 4, "budget": 3300}
    short: dict[str, Any] = {"calibration": 32, "held_out": 16, "budget": 7200, "refine": True}
    match part:
        case "search":
            return [(name, nfe, {"budget": 4000}) for name, nfe in both]
        case "long":
            return [(name, nfe, {}) for name, nfe in both]
        case "few":
            return [(name, nfe, few) for name, nfe in both]
        case "short":
            return [(name, nfe, short) for name, nfe in both]
        case "small":
            pairs = [(budget, refine) for budget in SMALL for refine in (False, True)]
            return [(name, nfe, {"budget": one, "refine": refine}) for name, nfe in both for one, refine in pairs]
        case _:
            return [(name, nfe, {"budget": 8000, "refine": True}) for name in small for nfe in (5, 8)]


def networks(name: str, weights: Path, data: Path) -> pfdiff.Network:
    """MNIST, `fashion`, or a small network."""
    if name == "fashion":
        return pfdiff.Network("fashion")
    if name == "mnist":
        file = data / "mnist28_ddpm_cosine60_eps.onnx"
        return pfdiff.Network(file, shape=(1, 28, 28), schedule=SCHEDULE, prediction="eps")
    recipe = RECIPES[name]
    bounds = (-1.0, 1.0) if recipe.data == "digits" else WIDE
    shape = SHAPES[recipe.data]
    words = {"shape": shape, "schedule": recipe.schedule, "prediction": recipe.prediction, "data_range": bounds}
    return pfdiff.Network(load(name, weights), **words)


def judge(
    subject: Subject,
    backend: Any,
    nfe: int,
    seeds: Sequence[int] = range(FIRST_JUDGED, FIRST_JUDGED + JUDGED),
    t_start: float | None = None,
) -> ErrorCriterion:
    """On seeds of its own."""
    setting = make_setting(subject, nfe, None, t_start, None)
    chosen = Reference.of_search(setting.schedule, setting.t_start, setting.prediction)
    chosen = chosen.doubled() if chosen.solver != "ddim" else chosen
    found = make_error_criterion(subject, backend, seeds, None, setting, chosen, Budget(), lambda *_: None)
    found.journal = None
    return found


def judged_long(network: pfdiff.Network, name: str, nfe: int) -> dict[str, Any]:
    """A sampler of LONG."""
    solver, grid, basis, start, evaluations = LONG[name, nfe]
    subject = Subject.of(network)
    contract = subject.contract
    program = pfdiff.compile(
        solver, contract.schedule, nfe, [float(t) for t in grid], basis, prediction=contract.prediction, t_start=start
    )
    with subject.opened("auto", 1) as backend:
        criterion = judge(subject, backend, nfe)
        error = math.sqrt(criterion.square(program, np.arange(JUDGED)) / JUDGED)
    return {"solver": solver, "grid": grid, "error": error, "evaluations": evaluations}


def measured(network: pfdiff.Network, nfe: int, settings: dict[str, Any], judged: int = JUDGED) -> dict[str, Any]:
    """The record of one run of tune, judged on so many seeds."""
    began, used = time.monotonic(), time.process_time()
    ranking = pfdiff.tune(network, nfe, threads=1, **settings)
    seconds, processor = time.monotonic() - began, time.process_time() - used
    subject, rows = Subject.of(network), np.arange(judged)
    with subject.opened("auto", 1) as backend:
        criterion = judge(subject, backend, nfe, range(FIRST_JUDGED, FIRST_JUDGED + judged))

        def error(program: pfdiff.Program) -> float:
            return math.sqrt(criterion.square(program, rows) / judged)

        first = ranking[0]
        before = ranking[1] if ranking.refinement and ranking.refinement["kept"] else first
        plain = next((one for one in ranking if one.solver == "ddim"), None)
        record = {
            "settings": settings,
            "judging_seeds": judged,
            "solver": first.solver,
            "grid": first.grid,
            "buffers": first.program.buffers,
            "error": error(first.program),
            "before": error(before.program),
            "ddim": None if plain is None else error(plain.program),
        }
    refinement = ranking.refinement or {}
    return {
        **record,
        "kept": refinement.get("kept"),
        "evaluations": ranking.evaluations,
        "cached": ranking.cached,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "refine_evaluations": refinement.get("evaluations"),
        "reference_error": ranking.reference_error,
        "guard": ranking.guard,
    }


if __name__ == "__main__":
    main()
