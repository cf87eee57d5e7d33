"""What the paper's tables need, sampled: `python -m pfdiff.bench.studies.paper.cells --out DIR [--part 0/2]`.

A cell is one solver at one NFE for `fashion`, conditional (sample s has label s mod 10) or unconditional (label 10).
Sample s has seed s. Cells are drawn in blocks of 1,000 seeds, one table after the other. Features are kept, not
pictures. What lies in DIR is not drawn again; several processes share the work as `--part 0/2` and `--part 1/2`.
DIR/made_by.json names network and features: with others, another DIR is asked for.

Grids: uniform in t, unless quadratic or logsnr lowered the error to the reference by 5 % or more (16 seeds, mean of
the logarithms at 4 and 8 evaluations). That was settled before any distance was computed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import final

import numpy as np
import torch

import pfdiff
from pfdiff.engine.atomic import replacing
from pfdiff.quality.distances.features import Features, extractor

BLOCK = 1000  # seeds
BATCH = 100
NO_LABEL = 10
NFE, FEW_NFE, LATER_NFE = (4, 6, 8, 10), (4, 8), (15, 20)
KINDS = ("conditional", "unconditional")
PLAIN = (
    "ddim@uniform",
    "dpm-solver:order=2@logsnr",
    "dpm++:2m@uniform",
    "deis:order=3@uniform",
    "unipc:order=2@logsnr",
)
K_L = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3))
OVER_DDIM = tuple(f"pfdiff:k={k},l={l}@uniform" for k, l in K_L)
OVER_DPM = tuple(f"pfdiff:k={k},l={l},base=dpm-solver-2@quadratic" for k, l in K_L)
DDIM_2_1, DPM_2_1 = OVER_DDIM[1], OVER_DPM[1]  # (k, l) = (2, 1) is the paper's recommendation
ABLATION = ("pfdiff:k=2,l=1,use=past@uniform", "pfdiff:k=2,l=1,use=future@uniform")
ROWS = (*PLAIN, DDIM_2_1, DPM_2_1)
SEARCHED, SEARCHED_OVER_DPM = (tuple(one for one in six if one not in ROWS) for six in (OVER_DDIM, OVER_DPM))


@final
@dataclass(frozen=True)
class Cell:
    """One solver, `solver@grid`, at one NFE."""

    kind: str
    sampler: str
    nfe: int

    def file(self, folder: Path, block: int) -> Path:
        """Where the features of a block are kept."""
        name = self.sampler.translate(str.maketrans(":=,@+", "-----"))
        return folder / f"{self.kind}_{name}_{self.nfe}" / f"{block:03d}.npz"


def defined(sampler: str, nfe: int) -> bool:
    """DPM-Solver-2 and PFDiff over it spend evaluations in pairs."""
    return nfe % 2 == 0 or not ("dpm-solver" in sampler or "future" in sampler)


def cells(kind: str, samplers: tuple[str, ...], nfe: tuple[int, ...]) -> list[Cell]:
    """Those that are defined."""
    return [Cell(kind, sampler, count) for count, sampler in product(nfe, samplers) if defined(sampler, count)]


def plan(blocks: int) -> Iterator[tuple[Cell, int]]:
    """(cell, block), one table after the other; within a table block by block, so that all its cells have one count."""
    over_ddim, between = (*SEARCHED, *ABLATION), tuple(one for one in NFE if one not in FEW_NFE)
    for chosen in (
        cells("conditional", ROWS, NFE),
        cells("conditional", over_ddim, FEW_NFE),
        cells("unconditional", ROWS, NFE),
        cells("conditional", ROWS, LATER_NFE),
        cells("conditional", SEARCHED_OVER_DPM, FEW_NFE),
        cells("unconditional", ROWS, LATER_NFE),
        cells("conditional", over_ddim, between),
    ):
        yield from ((cell, block) for block in range(blocks) for cell in chosen)


def built(cell: Cell, engine_folder: Path, threads: int, precision: str = "fp32") -> pfdiff.Engine:
    """An engine of this cell."""
    solver, _, grid = cell.sampler.partition("@")
    return pfdiff.build(
        "fashion", cell.nfe, solver, grid=grid, batch=BATCH, threads=threads, precision=precision, out=engine_folder
    )


def draw(engine: pfdiff.Engine, cell: Cell, seeds: np.ndarray) -> Features:
    """Features of the samples of these seeds, drawn as pixels."""
    labels = seeds % 10 if cell.kind == "conditional" else np.full(len(seeds), NO_LABEL)
    return extractor("fashion")(engine.images(seeds=seeds, nfe=cell.nfe, label=labels).numpy())


def check_same(folder: Path, precision: str = "fp32") -> None:
    """Say in `folder` what its cells are made of; exit where they were made of something else."""
    now = {"network": pfdiff.Network("fashion").digest, "features": extractor("fashion").digest}
    if precision != "fp32":
        now["precision"] = precision
    path = folder / "made_by.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=1) + "\n")
    elif json.loads(path.read_text()) != now:
        raise SystemExit(f"{folder} holds cells of another network or of other features; name another folder")


def draw_missing(
    cells: Iterable[tuple[Cell, int]], out: Path, threads: int, size: int = BLOCK, precision: str = "fp32"
) -> None:
    """The features of each (cell, block of `size` seeds) that `out` lacks; exits where `out` holds those of others.

    The engine of a cell is built once.
    """
    torch.set_num_threads(threads)
    check_same(out, precision)
    engines: dict[Cell, pfdiff.Engine] = {}
    with tempfile.TemporaryDirectory(prefix="pfdiff-") as folder, ExitStack() as stack:
        for cell, block in cells:
            path = cell.file(out, block)
            if path.exists():
                continue
            if cell not in engines:
                place = Path(folder) / f"{len(engines)}.engine"
                engines[cell] = stack.enter_context(built(cell, place, threads, precision))
            features = draw(engines[cell], cell, np.arange(block * size, (block + 1) * size))
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part, open(part, "wb") as file:
                np.savez(file, pooled=features.pooled, spatial=np.asarray(features.spatial))
            print(path, flush=True)


def main() -> None:
    """Draw what is missing of the plan."""
    parser = argparse.ArgumentParser(description="Sample the cells of the paper's tables.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the features")
    parser.add_argument("--blocks", type=int, default=10, help="of 1,000 seeds")
    parser.add_argument("--part", default="0/1", help="this process of how many")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    place, parts = map(int, given.part.split("/"))
    draw_missing(list(plan(given.blocks))[place::parts], given.out, given.threads)


if __name__ == "__main__":
    main()
