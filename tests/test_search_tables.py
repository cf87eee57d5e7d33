"""The figures' own arithmetic, and that a file keeps what it has on other NFE."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfdiff.bench import pareto, search_tables


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


def test_at_equal_latency_is_the_least_error_in_time():
    def point(solver: str, nfe: int, latency_ms: float, error: float) -> dict[str, Any]:
        return {"solver": solver, "nfe": nfe, "latency_ms": latency_ms, "error": error}

    points = [
        point("ddim", 4, 4.0, 0.4),
        point("ddim", 5, 5.0, 0.3),
        point("ddim", 8, 8.0, 0.2),
        point("pfdiff:k=1,l=1 refined", 4, 4.1, 0.1),  # later than DDIM's 4 evaluations
        point("ipndm:order=3 refined", 5, 5.0, 0.15),  # no better than fewer
        point("pfdiff:k=2,l=1 refined", 8, 7.9, 0.02),
    ]
    found = {one["nfe"]: ratio for one, ratio in pareto.at_equal_latency(points)}
    assert found == {5: pytest.approx(3.0), 8: pytest.approx(10.0)}
    assert isinstance(pareto.plot("name", points), Image.Image)
