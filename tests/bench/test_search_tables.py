"""The figures' own arithmetic, and that a file keeps what it has on other NFE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.bench.studies.samplers import pareto, search_tables
from pfdiff.export.network import Network
from pfdiff.quality.tune import Ranking, tune

from ..small.engine import CONDITIONS, SHAPE, write_onnx


def test_spearman():
    stats = pytest.importorskip("scipy.stats")
    one, other = np.random.default_rng(0).standard_normal((2, 30))
    expected = stats.spearmanr(one, one + other).statistic
    assert search_tables.spearman(list(one), list(one + other)) == pytest.approx(expected, rel=1e-12)


def test_a_file_keeps_other_nfe(tmp_path):
    class Source:
        digest = "d"
        contract: Any = type("Contract", (), {"name": "n", "schedule": "vp"})

    path = tmp_path / "search_n.json"
    for nfe, error in ((5, 0.1), (8, 0.2), (5, 0.3)):
        search_tables.add(path, Source(), nfe, {"error": error})  # pyright: ignore[reportArgumentType]
    held = json.loads(path.read_text())
    assert {nfe: one["error"] for nfe, one in held["nfe"].items()} == {"5": 0.3, "8": 0.2}
    assert all(one["machine"].keys() >= {"processor", "commit", "time"} for one in held["nfe"].values())


def point(solver: str, nfe: int, latency_ms: float, error: float) -> dict[str, Any]:
    return {"solver": solver, "nfe": nfe, "latency_ms": latency_ms, "error": error}


def test_at_equal_latency_is_the_least_error_in_time():
    points = [
        point("ddim", 4, 4.0, 0.4),
        point("ddim", 5, 5.0, 0.3),
        point("ddim", 8, 8.0, 0.2),
        point("pfdiff:k=1,l=1 refined", 4, 4.1, 0.1),  # later than DDIM's 4 evaluations
        point("ipndm:order=3 refined", 5, 5.0, 0.15),  # no better than fewer
        point("pfdiff:k=2,l=1 refined", 8, 8.04, 0.02),  # the same time, to 1 %
    ]
    assert [best and best["nfe"] for _, best in pareto.pairs(points)] == [None, 4, 8]
    table = list(pareto.at_equal_latency(points))
    assert table[2] == "| 4 | 4.0 | 0.4000 | none | | | | |"
    assert table[3] == "| 5 | 5.0 | 0.3000 | pfdiff:k=1,l=1 refined | 4 | 4.1 | 0.1000 | 3.00 |"
    assert table[4] == "| 8 | 8.0 | 0.2000 | pfdiff:k=2,l=1 refined | 8 | 8.0 | 0.0200 | 10.00 |"


def test_other_solvers_are_curves_of_their_own(monkeypatch: pytest.MonkeyPatch):
    """They are not taken for tuned ones however good they are, and DDIM may be what `tune` finds."""
    points = [
        {"curve": "ddim", **point("ddim", 5, 5.0, 0.3)},
        {"curve": "dpm++:2m", **point("dpm++:2m", 4, 4.0, 0.01)},
        {"curve": "dpm++:2m", **point("dpm++:2m", 5, 5.0, 0.02)},
        {"curve": "pfdiff:k=2,l=1", **point("pfdiff:k=2,l=1", 5, 5.0, 0.03)},
        {"curve": "tuned", **point("ddim refined", 4, 4.5, 0.2)},
        {"curve": "tuned", **point("ddim", 5, 5.0, 0.1)},
    ]
    assert pareto.pairs(points) == [(points[0], points[5])]
    drawn: list[Any] = []
    monkeypatch.setattr(pareto, "log_plot", lambda curves, **_: drawn.extend(curves))
    pareto.plot("name", points)
    assert {one.name: one.points for one in drawn} == {
        "DDIM, best grid": [(5.0, 0.3)],
        "half of DDIM's error": [(5.0, 0.15)],
        "tuned and refined": [(4.5, 0.2), (5.0, 0.1)],
        "dpm++:2m, best grid": [(4.0, 0.01), (5.0, 0.02)],
        "pfdiff:k=2,l=1, best grid": [(5.0, 0.03)],
    }


def test_older_points_do_not_say_their_curve(monkeypatch: pytest.MonkeyPatch):
    points = [point("ddim", 5, 5.0, 0.3), point("pfdiff:k=2,l=1", 5, 5.0, 0.1)]
    assert pareto.pairs(points) == [(points[0], points[1])]
    drawn: list[Any] = []
    monkeypatch.setattr(pareto, "log_plot", lambda curves, **_: drawn.extend(curves))
    pareto.plot("name", points)
    assert [one.name for one in drawn] == ["DDIM, best grid", "half of DDIM's error", "tuned"]


def test_what_was_searched_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run again, `pareto` searches only what the kept engines of the same network lack, and measures all again."""
    asked: list[tuple[str, int]] = []

    def few(source: Network, nfe: int, **settings: Any) -> Ranking:
        asked.append((" ".join(settings.get("solvers", ["tuned"])), nfe))
        return tune(source, nfe, **{"solvers": ["ddim", "ipndm:order=2"], "local": False, **settings})

    def run(network: Path, *tuned_nfe: int) -> dict[str, Any]:
        asked.clear()
        words = ["mnist", "--network", str(network), "--ddim-nfe", "2", "--refine-to", "0", "--rounds", "1"]
        words += ["--solvers", "dpm++:2m"]
        folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
        pareto.main([*words, *folders, "--tuned-nfe", *map(str, tuned_nfe)])
        return json.loads((tmp_path / "pareto_mnist.json").read_text())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pareto, "tune", few)
    monkeypatch.setattr(pareto, "HELD_OUT", 3)
    conditions = {one.name: one for one in CONDITIONS}
    words = {"shape": SHAPE, "schedule": "linear:1000", "prediction": "eps", "conditions": conditions}
    monkeypatch.setitem(pareto.NETWORKS, "mnist", words)
    monkeypatch.setitem(pareto.T_START, "mnist", 900)
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    write_onnx(one)
    write_onnx(other, weight=0.6)

    first = run(one, 3)
    assert asked == [("ddim", 2), ("dpm++:2m", 2), ("tuned", 3)]
    assert first["machine"].keys() >= {"processor", "commit", "time"}
    assert [(held["curve"], held["solver"], held["nfe"]) for held in first["points"]] == [
        ("ddim", "ddim", 2),
        ("dpm++:2m", "dpm++:2m", 2),
        ("tuned", "ipndm:order=2", 3),
    ]
    assert all(held["latency_ms"] > 0 for held in first["points"])
    second = run(one, 3, 4)
    assert asked == [("tuned", 4)]
    assert [held["error"] for held in second["points"][:3]] == [held["error"] for held in first["points"]]
    run(other, 3)
    assert asked == [("ddim", 2), ("dpm++:2m", 2), ("tuned", 3)]
