"""How many evaluations an optimised table saves on a network without error: `python -m ...samplers.parity_tables`.

The network is a mixture of ten Gaussians with known score in the EDM convention (64 elements). For each NFE: the best
rule-based solver, which is the best of all solvers on all grid rules and on grids read off the reference, and the table
that `tune --refine` makes. Each is chosen on 16 seeds, three times other ones. All are judged by the RMS distance to
UniPC-2 in 144 evaluations on 10,000 seeds that no search has seen. A table of N evaluations, as the median of three, is
compared with the median of the three rules of N + 2, and with the best of them. Few samples end in another mode than
the reference's and carry the error; it is also given without them. bench/results/search_parity.json, or
search_parity_N.json with other --calibration.

What is in --work is not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.atomic import replacing
from pfdiff.quality.criteria.error import ErrorCriterion, make_error_criterion
from pfdiff.quality.ranking import Ranked
from pfdiff.quality.sampling.budget import Budget
from pfdiff.quality.sampling.reference import Reference
from pfdiff.quality.sampling.subject import Subject
from pfdiff.quality.search.candidates import make_setting

from .budget_tables import FIRST_JUDGED
from .subjects import MIXTURE_SEED, MIXTURES

RESULTS = Path(__file__).parents[2] / "results"
NAME = "mixture-edm"
RULES, SAVED = (5, 6, 7, 8, 9, 10), 2
SEEDS = (0, 1, 2)
CALIBRATION, HELD_OUT = 16, 64  # seeds
SWITCHED = 0.5  # RMS error of a sample above which it has ended in another mode; others are far below, these far above
JUDGED, BLOCK = 10_000, 1000
REFERENCE = Reference("unipc:order=2", "angle:power=1.5", 144)
WIDE = (-9.0, 9.0)  # of data that is not in -1..1


class ExactMixture(nn.Module):
    """The exact x_0 of a mixture of Gaussians at x_t = x_0 + t eps: x [B, elements], t [B]; with gradients.

    x_0 = sum_k w_k (m_k + c (x - m_k)), c = d^2 / (d^2 + t^2), w_k the posterior weights: subjects.mixture.
    """

    def __init__(self) -> None:
        super().__init__()
        elements, components, self.deviation, _, _ = MIXTURES[NAME]
        generator = torch.Generator().manual_seed(MIXTURE_SEED)
        self.register_buffer("means", torch.randn(components, elements, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert isinstance(self.means, Tensor)
        sigma = t.double().reshape(-1, 1)
        variance = self.deviation**2 + sigma**2
        away = x.double()[:, None, :] - self.means
        weights = torch.softmax(-away.square().sum(2) / (2 * variance), 1)
        x_0 = (weights[:, :, None] * (self.means + (self.deviation**2 / variance)[:, :, None] * away)).sum(1)
        return x_0.float()


def network() -> pfdiff.Network:
    elements, _, _, schedule, prediction = MIXTURES[NAME]
    return pfdiff.Network(
        ExactMixture(), shape=(elements,), schedule=schedule, prediction=prediction, data_range=WIDE, name=NAME
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where what is computed is kept")
    parser.add_argument("--calibration", type=int, default=CALIBRATION)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--rules", type=int, nargs="+", default=RULES, help="evaluations of the rules")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"judging_seeds": JUDGED, "nfe": {}}
    for nfe in given.rules:
        rules = [made(given, "rule", nfe, seed) for seed in SEEDS]
        tables = [made(given, "table", nfe - SAVED, seed) for seed in SEEDS]
        row: dict[str, Any] = {"best rule": min(one["error"] for one in rules)}
        for kind, several in (("rule", rules), ("table", tables)):
            for name in ("error", "switched", "error_of_others"):
                row[f"{kind} {name}"] = statistics.median(one[name] for one in several)
        print(nfe, nfe - SAVED, row, flush=True)
        found["nfe"][str(nfe)] = {**row, "rules": rules, "tables": tables}
    suffix = "" if given.calibration == CALIBRATION else f"_{given.calibration}"
    (RESULTS / f"search_parity{suffix}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def made(given: argparse.Namespace, kind: str, nfe: int, seed: int) -> dict[str, Any]:
    """A sampler with its error on the seeds that judge."""
    path = given.work / f"{kind}_{nfe}_{seed}_{given.calibration}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    settings: dict[str, Any] = {"calibration": given.calibration, "held_out": given.held_out, "seed": seed}
    ranking = pfdiff.tune(network(), nfe, **settings, threads=1, local=kind == "table", refine=kind == "table")
    best = ranking[0] if kind == "table" else min(ranking, key=held_out_error)
    record = {
        "solver": best.solver,
        "grid": best.grid,
        "held_out_error": best.held_out_error,
        **judged(best.program),
        "kept": None if ranking.refinement is None else ranking.refinement["kept"],
        "evaluations": ranking.evaluations,
    }
    with replacing(path) as part:
        part.write_text(json.dumps(record), encoding="utf-8")
    print(kind, nfe, seed, record["solver"], record["held_out_error"], record["error"], flush=True)
    return record


def held_out_error(one: Ranked) -> float:
    """Infinite where it was not measured."""
    return math.inf if one.held_out_error is None else one.held_out_error


def judged(program: pfdiff.Program) -> dict[str, float]:
    """RMS error over all seeds that judge, the share in another mode, and the error of the others."""
    subject, squares, rows = Subject.of(network()), [], np.arange(BLOCK)
    with subject.opened("auto", 1) as backend:
        for first in range(FIRST_JUDGED, FIRST_JUDGED + JUDGED, BLOCK):
            criterion = judge(subject, backend, program.nfe, range(first, first + BLOCK))
            squares.append(criterion.squares(criterion.pool.sample(program, rows), rows))
    found = np.concatenate(squares)
    others = found[found < SWITCHED**2]
    return {
        "error": math.sqrt(float(found.mean())),
        "switched": 1 - len(others) / len(found),
        "error_of_others": math.sqrt(float(others.mean())),
    }


def judge(subject: Subject, backend: Any, nfe: int, seeds: range) -> ErrorCriterion:
    setting = make_setting(subject, nfe, None, None, None)
    return make_error_criterion(subject, backend, seeds, None, setting, REFERENCE, Budget(), lambda *_: None)


if __name__ == "__main__":
    main()
