"""Samplers that draw noise, and others: `python -m pfdiff.bench.studies.samplers.stochastic_cells --out DIR`.

A cell is one sampler at one NFE for `fashion`, conditional: sample s has seed s and label s mod 10. Cells are drawn in
blocks of 1,000 seeds: all cells of a block, few evaluations first, then the next block. Features are kept, not
pictures. What lies in DIR is not drawn again, so a run that was stopped goes on. `stochastic_tables` makes the figures.

`ddim:eta=1` and `euler-a` are the table of `ddpm` and have no cells of their own. Samplers that draw nothing have cells
of the same seeds where fashion_paper.json lacks 10,000 samples of them.

Grids: of samplers that draw noise the better of trailing and logsnr by Frechet distance at 8 evaluations, on 250 seeds
that no cell has, for one solver of a family (stochastic.json, key `grids`); of all PFDiff and the others those of
paper/cells.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..paper.cells import Cell, draw_missing

NFE = (4, 6, 8, 10, 20)
PAPER_NFE = (4, 6, 8, 10)  # of which fashion_paper.json has DETERMINISTIC, in fp32
BLOCK = 1000  # seeds
STOCHASTIC = (
    "ddpm@trailing",
    "ddim:eta=0.5@trailing",
    "analytic-ddpm@trailing",
    "dpm++:2m-sde@logsnr",
    "sa@logsnr",
    "sa:tau=0.4@logsnr",
    "pfdiff:k=2,l=1,eta=0.3@uniform",
    "pfdiff:k=2,l=1,base=analytic-ddim@uniform",
    "tada:order=2@logsnr",
)
DETERMINISTIC = ("ddim@uniform", "pfdiff:k=2,l=1@uniform", "dpm++:2m@uniform", "unipc:order=2@logsnr")


def cells() -> list[Cell]:
    """All that are drawn, few evaluations first."""
    return [
        Cell("conditional", sampler, nfe)
        for nfe in NFE
        for sampler in (STOCHASTIC if nfe in PAPER_NFE else (*STOCHASTIC, *DETERMINISTIC))
    ]


def plan(blocks: int) -> Iterator[tuple[Cell, int]]:
    """(cell, block), block by block."""
    yield from ((cell, block) for block in range(blocks) for cell in cells())


def main() -> None:
    """Draw what is missing of the plan."""
    parser = argparse.ArgumentParser(description="Sample the cells of the tables of samplers that draw noise.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the features")
    parser.add_argument("--blocks", type=int, default=10, help="of 1,000 seeds")
    parser.add_argument("--precision", default="fp32", help="fp32, or bf16 for half the time")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    draw_missing(plan(given.blocks), given.out, given.threads, BLOCK, given.precision)


if __name__ == "__main__":
    main()
