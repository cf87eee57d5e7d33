"""Figures of stochastic_cells: `python -m pfdiff.bench.studies.samplers.stochastic_tables --cells DIR --data DIR`.

Frechet distances on the shipped classifier's features to the training set (no FID). Every NFE has one sample count, the
largest that all its cells have. Distances fall with the count: `real` has those of as many real test pictures. Samplers
that draw nothing are taken from fashion_paper.json where it has them.

--grids measures the grids that stochastic_cells has of stochastic samplers, one solver of a family, on 250 seeds from
2,000,000 on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ....engine.atomic import replacing
from ....export.zoo.fashion_data import load_fashion
from ....quality.distances.features import Features, extractor, joined
from ....quality.distances.metrics import FrechetDistance, thinned
from ....quality.distances.real_pictures import reference_features
from ...measuring.machine import RESULTS, describe
from ..paper.cells import Cell, built, check_same, draw
from .stochastic_cells import BLOCK, DETERMINISTIC, NFE, PAPER_NFE, cells

GRIDS, GRID_NFE, GRID_SOLVERS = ("trailing", "logsnr"), 8, ("ddpm", "dpm++:2m-sde", "tada:order=2")
GRID_SEEDS = range(2_000_000, 2_000_250)


def blocks_of(folder: Path, cell: Cell) -> int:
    """How many were sampled, from the first on."""
    count = 0
    while cell.file(folder, count).exists():
        count += 1
    return count


def features(folder: Path, cell: Cell, blocks: int) -> Features:
    """Of the first blocks."""
    parts = []
    for block in range(blocks):
        with np.load(cell.file(folder, block)) as held:
            parts.append(Features(held["pooled"], held["spatial"]))
    return joined(parts)


def table(folder: Path, distance: FrechetDistance) -> dict[str, Any]:
    """{"samples": {nfe: count}, "rows": {sampler: {nfe: {"fd", "samples"}}}}"""
    counts = {nfe: min(blocks_of(folder, cell) for cell in cells() if cell.nfe == nfe) for nfe in NFE}
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells():
        if blocks := counts[cell.nfe]:
            found = {"fd": round(distance(features(folder, cell, blocks).pooled), 4), "samples": blocks * BLOCK}
            rows.setdefault(cell.sampler, {})[str(cell.nfe)] = found
    return {"samples": {str(nfe): count * BLOCK for nfe, count in counts.items()}, "rows": rows}


def of_the_paper(path: Path) -> dict[str, dict[str, Any]]:
    """{sampler: {nfe: {"fd", "samples"}}} of fashion_paper.json: the same seeds, labels and features, in fp32."""
    held = json.loads(path.read_text())["conditional"]
    return {
        sampler: {
            str(nfe): {"fd": held["rows"][sampler][str(nfe)]["fd"], "samples": held["samples"]} for nfe in PAPER_NFE
        }
        for sampler in DETERMINISTIC
    }


def grids(distance: FrechetDistance, threads: int) -> dict[str, Any]:
    """Distances by sampler and grid."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="pfdiff-") as folder:
        for solver in GRID_SOLVERS:
            for grid in GRIDS:
                cell = Cell("conditional", f"{solver}@{grid}", GRID_NFE)
                with built(cell, Path(folder) / "fashion.engine", threads) as engine:
                    pooled = draw(engine, cell, np.array(GRID_SEEDS)).pooled
                found.setdefault(solver, {})[grid] = round(distance(pooled), 4)
                print(solver, grid, found[solver][grid], flush=True)
    return {"nfe": GRID_NFE, "seeds": len(GRID_SEEDS), "fd": found}


def main() -> None:
    """Write bench/results/stochastic.json anew but for what was not asked for."""
    parser = argparse.ArgumentParser(description="Tables of samplers that draw noise.")
    parser.add_argument("--cells", type=Path, help="what stochastic_cells wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--grids", action="store_true", help="measure the grids alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32", help="of the cells")
    given = parser.parse_args()
    if not (given.grids or given.cells):
        parser.error("the table needs --cells")
    path = given.out / "stochastic.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    network = extractor("fashion")
    pixels, _ = load_fashion(given.data)
    real, _ = reference_features(network, pixels[..., None])
    distance = FrechetDistance(real.pooled)
    if given.grids:
        found["grids"] = {"machine": describe(), **grids(distance, given.threads)}
    else:
        check_same(given.cells, given.precision)
        test, _ = load_fashion(given.data, "test")
        drawn = table(given.cells, distance)
        for sampler, row in of_the_paper(RESULTS / "fashion_paper.json").items():
            drawn["rows"][sampler] = row | drawn["rows"].get(sampler, {})
        found |= {"machine": describe(), "features": network.digest, "precision": given.precision, **drawn}
        found["real"] = {
            str(count): round(distance(network(thinned(test[..., None], count)).pooled), 4)
            for count in sorted({*drawn["samples"].values()} - {0})
        }
    with replacing(path) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
