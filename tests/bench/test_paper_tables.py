"""The paper's tables on made-up features: counts, what is missing, the search, the correlation; one real cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.bench.studies.paper import cells as plan
from pfdiff.bench.studies.paper import tables as paper_tables
from pfdiff.bench.studies.paper.cells import Cell
from pfdiff.bench.studies.paper.report import plots, rows_of
from pfdiff.quality.distances.features import Features, extractor
from pfdiff.quality.distances.metrics import FrechetDistance, precision_recall, thinned

WIDTH, BLOCK = 3, 40


def vectors(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32) + np.float32(shift)


@pytest.fixture
def ruler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paper_tables.Ruler:
    """A ruler with 200 made-up real features, and no cells yet."""
    monkeypatch.setattr(plan, "BLOCK", BLOCK)
    monkeypatch.setattr(paper_tables, "load_fashion", lambda data: (np.zeros((2, 28, 28), np.uint8), None))
    real = Features(vectors(0, 200), vectors(1, 200))
    monkeypatch.setattr(paper_tables, "reference_features", lambda network, pixels: (real, "digest"))
    return paper_tables.Ruler(tmp_path, tmp_path)


def sampled(folder: Path, cell: Cell, blocks: int, shift: float) -> np.ndarray:
    parts = [vectors(100 + block, BLOCK, shift) for block in range(blocks)]
    for block, part in enumerate(parts):
        path = cell.file(folder, block)
        path.parent.mkdir(exist_ok=True)
        np.savez(path, pooled=part, spatial=2 * part)
    return np.concatenate(parts)


def test_a_table_has_one_count_and_leaves_out_what_was_not_sampled(ruler: paper_tables.Ruler, tmp_path: Path) -> None:
    many = sampled(tmp_path, Cell("conditional", "ddim@uniform", 4), 3, 0.5)
    few = sampled(tmp_path, Cell("conditional", "dpm++:2m@uniform", 4), 2, 0.2)
    sampled(tmp_path, Cell("unconditional", "ddim@uniform", 8), 1, 0.2)
    samplers = ("ddim@uniform", "dpm++:2m@uniform", "unipc:order=2@logsnr")
    found = paper_tables.table(ruler, "conditional", samplers, (4, 6))
    assert found is not None
    assert found["samples"] == 2 * BLOCK
    assert list(found["rows"]) == ["ddim@uniform", "dpm++:2m@uniform"]
    for sampler, made in (("ddim@uniform", many[: 2 * BLOCK]), ("dpm++:2m@uniform", few)):
        (figures,) = found["rows"][sampler].values()
        assert figures["fd"] == pytest.approx(FrechetDistance(ruler.real.pooled)(made), abs=1e-4)
        assert figures["sfd"] == pytest.approx(FrechetDistance(np.asarray(ruler.real.spatial))(2 * made), abs=1e-4)
        shares = precision_recall(thinned(ruler.real.pooled, 2 * BLOCK), made)
        assert (figures["precision"], figures["recall"]) == pytest.approx(shares, abs=1e-4)
    assert paper_tables.table(ruler, "conditional", ("ddim@uniform",), (20,)) is None
    lines = rows_of(found).splitlines()
    assert lines[0].startswith("80 samples a cell")
    assert sum("**" in line for line in lines) == 1  # the least FD of the one column


def test_the_search_on_a_tenth_finds_a_clear_winner_and_counts_its_choices(
    ruler: paper_tables.Ruler, tmp_path: Path
) -> None:
    for sampler, shift in (("ddim@uniform", 3.0), ("dpm++:2m@uniform", 0.0), ("deis:order=3@uniform", 0.01)):
        sampled(tmp_path, Cell("conditional", sampler, 4), 2, shift)
    samplers = ("ddim@uniform", "dpm++:2m@uniform", "deis:order=3@uniform")
    found = paper_tables.search(ruler, samplers, 4)
    assert found is not None
    assert (found["samples"], found["tenth"]) == (2 * BLOCK, 8)
    assert sum(found["chosen"].values()) == found["draws"]
    assert "ddim@uniform" not in found["chosen"]
    assert found["agree"] == found["chosen"][found["best"]] / found["draws"]
    assert 1 <= found["fd_of_choice_over_best"] < 1.5
    assert paper_tables.search(ruler, samplers, 6) is None


def test_correlation_takes_the_cells_that_have_both_figures() -> None:
    rows = {"a": {"4": {"fd": 3.0}, "8": {"fd": 1.0}}, "b": {"4": {"fd": 2.0}}, "c": {"4": {"fd": 1.5}}}
    rms = {"a": {"4": 0.3, "8": 0.05}, "b": {"4": 0.1}, "c": {"4": 0.2}}
    found = paper_tables.correlation(rms, {"conditional": {"rows": rows}, "k_l": {"rows": {}}})
    assert found["cells"] == 4
    assert found["spearman"] == 0.8  # ranks 4 2 3 1 against 4 3 2 1
    assert list(found["each_nfe"]) == ["4"]  # one solver has no rank at 8
    assert found["each_nfe"]["4"]["spearman"] == 0.5
    assert found["each_nfe"]["4"]["least_error"] == "b"
    assert found["each_nfe"]["4"]["fd_of_least_error_over_least"] == round(2 / 1.5, 3)


def test_the_plan_draws_every_cell_once_and_none_that_is_not_defined() -> None:
    pairs = [(cell.kind, cell.sampler, cell.nfe, block) for cell, block in plan.plan(1)]
    first = [pair for pair in dict.fromkeys(pairs) if pair[3] == 0]
    assert not any(nfe % 2 and "dpm-solver" in sampler for _, sampler, nfe, _ in first)
    assert len({plan.Cell(*pair[:3]).file(Path(), 0) for pair in first}) == len(first)
    for kind in plan.KINDS:
        for sampler in plan.ROWS:
            for nfe in (*plan.NFE, *plan.LATER_NFE):
                assert ((kind, sampler, nfe, 0) in first) == plan.defined(sampler, nfe)


def test_a_cell_is_drawn_with_its_seeds_labels_and_solver(tmp_path: Path) -> None:
    cell = Cell("conditional", "ddim@uniform", 2)
    with plan.built(cell, tmp_path / "fashion.engine", 1) as engine:
        made = plan.draw(engine, cell, np.arange(12, 16))
        assert engine.programs[2].digest == pfdiff.compile("ddim", "linear:1000", 2, "uniform", prediction="v").digest
        pixels = engine.images(seeds=[12, 13, 14, 15], label=[2, 3, 4, 5]).numpy()
    np.testing.assert_allclose(made.pooled, extractor("fashion")(pixels).pooled, atol=2e-2)


def test_the_grid_is_uniform_unless_another_is_clearly_better() -> None:
    assert paper_tables.chosen_grid({"uniform": 0.1, "quadratic": 0.096, "logsnr": 0.2}) == "uniform"
    assert paper_tables.chosen_grid({"uniform": 0.1, "quadratic": 0.094, "logsnr": 0.093}) == "logsnr"


def test_cells_of_another_network_are_not_mixed_in(tmp_path: Path) -> None:
    plan.check_same(tmp_path)
    plan.check_same(tmp_path)  # the same: nothing to say
    (tmp_path / "made_by.json").write_text('{"network": "another"}')
    with pytest.raises(SystemExit, match="another network"):
        plan.check_same(tmp_path)


def test_plots_show_both_kinds_and_the_correlation() -> None:
    rows = {"ddim@uniform": {"4": {"fd": 3.0}, "8": {"fd": 1.0}}, "dpm++:2m@uniform": {"4": {"fd": 2.0}}}
    table = {"samples": 40, "rows": rows}
    found = {"features": {"real": 200}, "conditional": table, "unconditional": None}
    assert list(plots(found)) == ["fashion_paper"]
    found |= {"unconditional": table, "errors": {"rms": {"ddim@uniform": {"4": 0.2}}}}
    drawn = plots(found)
    assert list(drawn) == ["fashion_paper", "fashion_paper_unconditional", "fashion_paper_errors"]
    points = {
        name: [np.asarray(line.get_xydata()).tolist() for line in one.axes[0].lines] for name, one in drawn.items()
    }
    assert points["fashion_paper"] == [[[4, 3.0], [8, 1.0]], [[4, 2.0]]]
    assert points["fashion_paper_errors"] == [[[0.2, 3.0]]]
