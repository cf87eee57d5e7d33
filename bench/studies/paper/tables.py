"""The paper's tables for `fashion`: what `cells` sampled becomes figures, tables and a plot.

    python -m pfdiff.bench.studies.paper.cells --out CELLS                  # six hours of a core; goes on where it was
    python -m pfdiff.bench.studies.paper.tables --cells CELLS --data DATA   # all that follows from it

--part does one of these alone, each of which replaces its own keys of OUT/fashion_paper.json:

grids    errors of every solver on every grid: the choice that cells.py made
errors   errors to the reference, for their correlation with the distances
times    processor time for 1,000 samples
tables   distances, precision and recall; and from all of it fashion_paper.md and its plots

A table holds one sample count, the largest that all its cells have: distances fall with the count. A cell that was not
sampled is left empty. The features are those of the shipped classifier: these are no FID.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import pfdiff
from pfdiff.bench.measuring.machine import RESULTS, describe
from pfdiff.bench.studies.paper import cells as plan
from pfdiff.bench.studies.paper.cells import Cell
from pfdiff.bench.studies.paper.report import markdown, plots
from pfdiff.bench.studies.samplers.search_tables import show, spearman
from pfdiff.export.zoo.fashion_data import load_fashion
from pfdiff.quality.distances.features import Features, extractor, joined
from pfdiff.quality.distances.metrics import Array, FrechetDistance, Manifold, thinned
from pfdiff.quality.distances.real_pictures import reference_features
from pfdiff.quality.pictures.plot import write_plot

FIGURES = ("fd", "sfd", "precision", "recall")
DRAWS, PART = 100, 10  # of the search on a tenth of the samples
ERROR_SEEDS, REFERENCE = 16, 100  # tune chooses on 16 seeds
GRIDS, BETTER = ("uniform", "quadratic", "logsnr"), 0.95  # of the uniform grid's error
TIMED, ROUNDS = 100, 3
TIMED_NFE = (4, 8, 20)
TIMED_SAMPLERS = ("ddim@uniform", plan.DDIM_2_1, "dpm-solver:order=2@logsnr", plan.DPM_2_1)
ALL_NFE = (*plan.NFE, *plan.LATER_NFE)


def main() -> None:
    """Compute one part, or all, and write it."""
    parser = argparse.ArgumentParser(description="The paper's tables for the fashion network.")
    parser.add_argument("--part", choices=["grids", "errors", "times", "tables"], help="default: all")
    parser.add_argument("--cells", type=Path, help="what paper.cells wrote")
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.part in (None, "tables") and not (given.cells and given.data):
        parser.error("the tables need --cells and --data")
    path = given.out / "fashion_paper.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for part, measure in {"grids": grids, "errors": errors, "times": times}.items():
        if given.part in (None, part):
            found[part] = {"machine": describe(), **measure(given.threads)}
            path.write_text(json.dumps(found, indent=1) + "\n")
    if given.part in (None, "tables"):
        found["machine"] = describe()
        found.update(tables(given.cells, given.data, found.get("errors", {})))
        path.write_text(json.dumps(found, indent=1) + "\n")
        (given.out / "fashion_paper.md").write_text(markdown(found))
        for name, figure in plots(found).items():
            write_plot(given.out / f"{name}.png", figure)


# Errors and times.
def grids(threads: int | None) -> dict[str, Any]:
    """Errors by solver and grid, mean of the logarithms at 4 and 8 evaluations; and the choice, by the plan's rule."""
    solvers = [sampler.partition("@")[0] for sampler in plan.ROWS]
    result = pfdiff.compare(
        "fashion",
        plan.FEW_NFE,
        [f"{solver}@{grid}" for solver, grid in product(solvers, GRIDS)],
        seeds=ERROR_SEEDS,
        reference=REFERENCE,
        threads=threads,
        progress=show,
    )
    mean: dict[str, dict[str, float]] = {}
    for solver, grid in product(solvers, GRIDS):
        logarithms = [math.log(one.error) for one in result.of(f"{solver}@{grid}") if one.error is not None]
        mean.setdefault(solver, {})[grid] = round(math.exp(sum(logarithms) / len(plan.FEW_NFE)), 5)
    return {
        "seeds": ERROR_SEEDS,
        "nfe": plan.FEW_NFE,
        "error": mean,
        "chosen": {one: chosen_grid(mean[one]) for one in mean},
    }


def chosen_grid(error: Mapping[str, float]) -> str:
    """Uniform, unless another lowers the error by 5 % or more; then the best."""
    best = min(error, key=lambda grid: error[grid])
    return best if error[best] <= BETTER * error["uniform"] else "uniform"


def errors(threads: int | None) -> dict[str, Any]:
    """RMS distance to the many-step reference of the same seeds, labels in turn: what `tune` minimises."""
    samplers = (*plan.ROWS, *plan.SEARCHED)
    result = pfdiff.compare(
        "fashion", ALL_NFE, samplers, seeds=ERROR_SEEDS, reference=REFERENCE, threads=threads, progress=show
    )
    return {
        "seeds": ERROR_SEEDS,
        "reference": vars(result.reference),
        "rms": {
            sampler: {str(one.nfe): one.error for one in result.of(sampler) if one.error is not None}
            for sampler in samplers
        },
    }


def times(threads: int | None) -> dict[str, Any]:
    """CPU seconds for 1,000 samples in batches of 100: two solvers, each with and without PFDiff, in turns."""
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="pfdiff-") as folder:
        engines = {}
        for number, sampler in enumerate(TIMED_SAMPLERS):
            solver, _, grid = sampler.partition("@")
            out = Path(folder) / f"{number}.engine"
            settings = {"grid": grid, "batch": plan.BATCH, "threads": threads, "out": out}
            engines[sampler] = pfdiff.build("fashion", TIMED_NFE, solver, **settings)
            engines[sampler].sample(seeds=range(plan.BATCH), nfe=TIMED_NFE[0], label=0)  # the first call binds
        for nfe, _, sampler in product(TIMED_NFE, range(ROUNDS), TIMED_SAMPLERS):
            start = time.process_time()
            engines[sampler].sample(seeds=range(TIMED), nfe=nfe, label=np.arange(TIMED) % 10)
            seconds.setdefault(sampler, {}).setdefault(str(nfe), []).append(
                round((time.process_time() - start) * 1000 / TIMED, 3)
            )
        backend = engines[TIMED_SAMPLERS[0]].description
        for engine in engines.values():
            engine.close()
    return {
        "backend": backend,
        "timed": TIMED,
        "batch": plan.BATCH,
        "rounds": ROUNDS,
        "cpu_seconds_for_1000": seconds,
    }


# Distances.
class Ruler:
    """The real pictures' features, and the figures of cells against them."""

    def __init__(self, cells: Path, data: Path) -> None:
        self.network = extractor("fashion")
        pixels, _ = load_fashion(data)
        self.real, self.digest = reference_features(self.network, pixels[..., None])
        self._cells = cells
        self.pooled = FrechetDistance(self.real.pooled)
        self.spatial = FrechetDistance(np.asarray(self.real.spatial))
        self.manifold = cache(lambda count: Manifold(self.drawn(count)))
        self.figures = cache(lambda cell, blocks: self.measure(self.features(cell, blocks)))

    def blocks(self, cell: Cell) -> int:
        """How many were sampled, from the first on."""
        count = 0
        while cell.file(self._cells, count).exists():
            count += 1
        return count

    def features(self, cell: Cell, blocks: int) -> Features:
        """Of the first blocks."""
        parts = []
        for block in range(blocks):
            with np.load(cell.file(self._cells, block)) as held:
                parts.append(Features(held["pooled"], held["spatial"]))
        return joined(parts)

    def drawn(self, count: int) -> Array:
        """As many real pictures' features."""
        return thinned(self.real.pooled, count)

    def measure(self, made: Features) -> dict[str, float]:
        """FD, sFD, and precision and recall against as many real pictures."""
        precision = self.manifold(len(made)).share(made.pooled)
        recall = Manifold(made.pooled).share(self.drawn(len(made)))
        values = (self.pooled(made.pooled), self.spatial(np.asarray(made.spatial)), precision, recall)
        return {name: round(value, 4) for name, value in zip(FIGURES, values, strict=True)}


def tables(cells: Path, data: Path, errors: dict[str, Any]) -> dict[str, Any]:
    """Every table that the cells allow."""
    plan.check_same(cells)
    ruler = Ruler(cells, data)
    least = [(nfe, min(map(ruler.blocks, plan.cells("conditional", plan.SEARCHED, (nfe,))))) for nfe in plan.NFE]
    few = tuple(nfe for nfe, blocks in least if blocks and blocks == max(blocks for _, blocks in least))
    found = {
        "features": {"extractor": ruler.network.name, "sha256": ruler.network.digest, "real": len(ruler.real)},
        "reference_sha256": ruler.digest,
        "conditional": table(ruler, "conditional", plan.ROWS, ALL_NFE),
        "unconditional": table(ruler, "unconditional", plan.ROWS, ALL_NFE),
        "ablation": table(ruler, "conditional", ("ddim@uniform", *plan.ABLATION, plan.DDIM_2_1), few),
        "k_l": table(ruler, "conditional", plan.OVER_DDIM, few),
        "k_l_over_dpm": table(ruler, "conditional", plan.OVER_DPM, plan.FEW_NFE),
        "search": [
            one
            for samplers, counts in ((plan.OVER_DDIM, few), (plan.OVER_DPM, plan.FEW_NFE))
            for nfe in counts
            if (one := search(ruler, samplers, nfe))
        ],
    }
    count = found["conditional"]["samples"]
    test_pixels, _ = load_fashion(data, "test")
    held_out = ruler.network(thinned(test_pixels[..., None], count))
    found["real"] = {"samples": count, **ruler.measure(held_out)}
    if errors:
        found["correlation"] = correlation(errors["rms"], found)
    return found


def table(ruler: Ruler, kind: str, samplers: Sequence[str], nfe: Sequence[int]) -> dict[str, Any] | None:
    """{"samples": .., "rows": {sampler: {nfe: figures}}} of the cells that were sampled; None when none was."""
    cells = [cell for cell in plan.cells(kind, tuple(samplers), tuple(nfe)) if ruler.blocks(cell)]
    if not cells:
        return None
    blocks = min(ruler.blocks(cell) for cell in cells)
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault(cell.sampler, {})[str(cell.nfe)] = ruler.figures(cell, blocks)
    return {"samples": blocks * plan.BLOCK, "rows": {name: rows[name] for name in samplers if name in rows}}


def search(ruler: Ruler, samplers: Sequence[str], nfe: int) -> dict[str, Any] | None:
    """The choice of (k, l) by FD on a tenth of the samples, drawn many times, against that on all of them."""
    cells = plan.cells("conditional", tuple(samplers), (nfe,))
    blocks = min(ruler.blocks(cell) for cell in cells)
    if not blocks:
        return None
    made = [ruler.features(cell, blocks).pooled for cell in cells]
    full = np.array([ruler.pooled(one) for one in made])
    count = len(made[0]) // PART
    generator = np.random.default_rng(nfe)
    chosen = []
    for _ in range(DRAWS):
        rows = generator.choice(len(made[0]), count, replace=False)
        chosen.append(int(np.argmin([ruler.pooled(one[rows]) for one in made])))
    times = {cell.sampler: chosen.count(place) for place, cell in enumerate(cells) if place in chosen}
    return {
        "nfe": nfe,
        "samples": len(made[0]),
        "tenth": count,
        "draws": DRAWS,
        "best": cells[int(np.argmin(full))].sampler,
        "chosen": times,
        "agree": chosen.count(int(np.argmin(full))) / DRAWS,
        "fd_of_choice_over_best": round(float(np.mean(full[chosen]) / full.min()), 4),
    }


def correlation(rms: dict[str, dict[str, float]], found: dict[str, Any]) -> dict[str, Any]:
    """Spearman's correlation of error and FD, over solvers at each NFE and over all cells."""
    distances: dict[str, dict[str, float]] = {}
    for one in (found["conditional"], found["k_l"]):
        for sampler, row in one["rows"].items():
            distances.setdefault(sampler, {}).update({nfe: figures["fd"] for nfe, figures in row.items()})
    pairs = [
        (nfe, sampler, rms[sampler][nfe], fd)
        for sampler, row in distances.items()
        for nfe, fd in row.items()
        if nfe in rms[sampler]
    ]
    each = {}
    for nfe in sorted({pair[0] for pair in pairs}, key=int):
        at = [pair for pair in pairs if pair[0] == nfe]
        if len(at) < 3:
            continue
        by_error, by_distance = min(at, key=lambda pair: pair[2]), min(at, key=lambda pair: pair[3])
        each[nfe] = {
            "solvers": len(at),
            "spearman": round(spearman([pair[2] for pair in at], [pair[3] for pair in at]), 3),
            "least_error": by_error[1],
            "least_fd": by_distance[1],
            "fd_of_least_error_over_least": round(by_error[3] / by_distance[3], 3),
        }
    overall = spearman([pair[2] for pair in pairs], [pair[3] for pair in pairs])
    return {"cells": len(pairs), "spearman": round(overall, 3), "each_nfe": each}


if __name__ == "__main__":
    main()
