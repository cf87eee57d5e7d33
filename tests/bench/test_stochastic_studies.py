"""The studies of samplers that draw noise and of the distilled network: what is planned, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pfdiff import compile
from pfdiff.bench.studies.samplers import distilled_tables, stochastic_tables
from pfdiff.bench.studies.samplers.stochastic_cells import BLOCK, DETERMINISTIC, NFE, STOCHASTIC, cells, plan
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.compiler.solvers.stochastic.analytic import Analytic
from pfdiff.engine.philox import parse_seeds
from pfdiff.quality.distances.metrics import FrechetDistance

RESULTS = Path(distilled_tables.__file__).parents[2] / "results"


def test_every_cell_compiles() -> None:
    """`fashion` predicts v on linear:1000; Analytic-DPM gets made-up variances."""
    for cell in cells():
        solver, _, grid = cell.sampler.partition("@")
        method = parse_solver(solver)
        if isinstance(method, Analytic) and method.lacks_variances:
            solver = str(method.with_variances((0.1,) * cell.nfe))
        program = compile(solver, "linear:1000", cell.nfe, grid, prediction="v")
        assert (program.noises > 0) == (cell.sampler in STOCHASTIC)
    order = [(block, cell.nfe) for cell, block in plan(2)]
    assert order == sorted(order)
    of_the_paper = stochastic_tables.of_the_paper(RESULTS / "fashion_paper.json")
    for sampler in DETERMINISTIC:
        drawn = {cell.nfe for cell in cells() if cell.sampler == sampler}
        assert sorted([*drawn, *map(int, of_the_paper[sampler])]) == sorted(NFE)
        assert {one["samples"] for one in of_the_paper[sampler].values()} == {10_000}
    parse_seeds(stochastic_tables.GRID_SEEDS)


def test_a_column_has_one_count(tmp_path: Path) -> None:
    """Two blocks of all cells but one of 4 NFE: that column has one block, others two; 20 NFE is not sampled."""
    rng = np.random.default_rng(0)
    for cell in cells():
        for block in range(2):
            if cell.nfe == 20 or (block and cell.nfe == 4 and cell.sampler == STOCHASTIC[-1]):
                continue
            path = cell.file(tmp_path, block)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, pooled=rng.standard_normal((BLOCK, 3)), spatial=np.zeros((BLOCK, 1)))
    found = stochastic_tables.table(tmp_path, FrechetDistance(rng.standard_normal((4000, 3)).astype(np.float32)))
    assert found["samples"] == {str(nfe): {4: BLOCK, 20: 0}.get(nfe, 2 * BLOCK) for nfe in NFE}
    assert found["rows"][STOCHASTIC[0]]["4"]["samples"] == BLOCK
    assert found["rows"][STOCHASTIC[0]]["6"]["samples"] == 2 * BLOCK
    assert "20" not in found["rows"][STOCHASTIC[0]]
    assert found["rows"][STOCHASTIC[0]]["6"]["fd"] < 0.1  # the same distribution
    assert "ddim@uniform" not in found["rows"]  # drawn at 20 NFE alone


def test_rows_of_the_distilled_study() -> None:
    rows = list(distilled_tables.cells())
    assert len({one.key for one in rows}) == len(rows)
    assert {one.network for one in rows} == {"fashion", "fashion-distilled"}
    for one in rows:
        compile(one.solver, "linear:1000", one.nfe, one.grid, prediction="v")
        assert one.passes == one.nfe * (2 if one.guidance > 1 else 1)


@pytest.mark.parametrize("name", ["distilled.json", "stochastic.json"])
def test_the_page_has_the_figures(name: str) -> None:
    """Every Frechet distance and agreement of the page is in the file, to the digits shown, and the other way round."""
    page = (RESULTS.parents[1] / "docs" / "results.md").read_text()
    stored = json.loads((RESULTS / name).read_text())
    title = {"distilled.json": "### Distilled and solved", "stochastic.json": "### With noise and without"}[name]
    section = page.partition(title)[2].partition("\n#")[0]
    lines = [[one.strip() for one in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    if name == "distilled.json":
        shown = [(int(passes), agreement, fd) for *_, passes, agreement, fd in lines if fd[0].isdigit()]
        expected = [
            (row["passes"], f"{row['class_agreement']:.1%}".replace("%", " %"), f"{row['fd']:.2f}")
            for row in stored["rows"].values()
        ]
        assert shown == expected
        return
    table = {line[0].strip("`"): line[1:] for line in lines if line[0].startswith("`")}
    for sampler, row in stored["rows"].items():
        found = [f"{row[str(nfe)]['fd']:.2f}" if str(nfe) in row else "" for nfe in NFE]
        assert table[sampler.partition("@")[0]] == found, sampler
