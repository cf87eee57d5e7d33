"""How many evaluations an optimised table saves on a network without error: `python -m ...samplers.parity_tables`.

The network is a mixture of ten Gaussians with known score in the EDM convention (64 elements). For each NFE: the best
rule-based solver, which is the best of all solvers on all grid rules, and the table that `tune --refine` makes. Both
are chosen on 16 seeds and judged by the RMS distance to a many-step solution on 64 others. A table of N evaluations is
compared with rules of N + 2. bench/results/search_parity.json; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pfdiff

from .subjects import MIXTURE_SEED, MIXTURES

RESULTS = Path(__file__).parents[2] / "results" / "search_parity.json"
NAME = "mixture-edm"
RULES, TABLES = (5, 6, 7, 8, 9, 10), (3, 4, 5, 6, 7, 8)
WIDE = (-9.0, 9.0)  # of data that is not in -1..1
SEEDS: dict[str, Any] = {"calibration": 16, "held_out": 64, "threads": 1}


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
    parser.add_argument("--rules", type=int, nargs="+", default=RULES)
    parser.add_argument("--tables", type=int, nargs="+", default=TABLES)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    held: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rule": {}, "table": {}}
    asked = [("rule", nfe) for nfe in given.rules] + [("table", nfe) for nfe in given.tables]
    for kind, nfe in asked:
        if str(nfe) in held[kind]:
            continue
        held[kind][str(nfe)] = rule(nfe) if kind == "rule" else table(nfe)
        RESULTS.write_text(json.dumps(held, indent=1) + "\n")
        print(kind, nfe, held[kind][str(nfe)], flush=True)


def rule(nfe: int) -> dict[str, Any]:
    """The best of all solvers on all grid rules."""
    found = pfdiff.tune(network(), nfe, local=False, **SEEDS)
    first = min(found, key=lambda one: one.held_out_error or float("inf"))
    return {"solver": first.solver, "grid": first.grid, "error": first.held_out_error, "evaluations": found.evaluations}


def table(nfe: int) -> dict[str, Any]:
    """The optimised table, or what it was made from where it was not better."""
    found = pfdiff.tune(network(), nfe, refine=True, **SEEDS)
    refinement = found.refinement or {}
    return {
        "solver": found[0].solver,
        "error": found[0].held_out_error,
        "tuned": refinement.get("held_out_before"),
        "kept": refinement.get("kept"),
        "evaluations": found.evaluations,
    }


if __name__ == "__main__":
    main()
