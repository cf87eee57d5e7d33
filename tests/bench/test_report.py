"""bench/report.py: the page about stored runs, its plots, and what the command line says when there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfdiff.bench import report
from pfdiff.bench.measuring.machine import RESULTS
from pfdiff.bench.regression import store
from pfdiff.bench.report import write_report
from pfdiff.cli import main
from pfdiff.engine.errors import InputError


def row(p50: float, **facts: Any) -> dict[str, Any]:
    known = {"rounds": 99, "p50_ms": p50, "p90_ms": p50, "p99_ms": 2 * p50, "max_ms": 3 * p50}
    return {**known, "peer": None, "ratios": {}, **facts}


def run(p50: float) -> dict[str, Any]:
    overhead = {"whole / bare evaluations": {"value": 1.0625, "spread": 0.0105}}
    ours = {"pfdiff / this": {"value": 0.5, "spread": 0.01}}
    case = {"engine": "fashion", "precision": "fp32", "backend": "onnxruntime", "nfe": 8, "batch": 1}
    shares = {"network": 0.9, "updates": 0.04, "rest": 0.06}
    peer = {
        "engine": "fashion",
        "solver": "ddim",
        "nfe": 8,
        "peer": "diffusers",
        "error": 2e-6,
        "threads": 1,
        "ours": {"backend": "onnxruntime 1, CPU, fp32", "p50_ms": 20},
    }
    return {
        "machine": {
            "gpu": None,
            "processor": "A Processor",
            "cores": 2,
            "system": "Linux",
            "versions": {"torch": "2"},
            "commit": "0123456789abcdef",
            "time": "2026-01-01",
        },
        "passes": 3,
        "seconds": 100,
        "benchmarks": {
            "test_sample[fashion-fp32]": row(p50, per_sample_ms=p50, shares=shares, ratios=overhead, **case),
            "test_pytorch[ddim]": row(40.0, rounds=100, ratios=ours, **{**peer, "peer": "diffusers 1"}),
            "test_first_sample[fashion-fp32]": row(300.0, load_ms=200.0),
            "test_command[import pfdiff]": row(25.0, added_ms=4.5, budget_ms=150),
            "test_build": row(3000.0),
        },
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    device = tmp_path / "results" / "a-processor"
    store(device, run(20.0))
    store(device, run(10.0))
    points = [
        {"solver": solver, "nfe": nfe, "latency_ms": 2.0 * nfe, "error": error / nfe}
        for solver, error in (("ddim", 2.0), ("pfdiff:k=2,l=1", 0.5))
        for nfe in (4, 8)
    ]
    new = [{"curve": "ddim" if one["solver"] == "ddim" else "tuned", **one} for one in points]
    new.append({"curve": "dpm++:2m", "solver": "dpm++:2m", "nfe": 8, "latency_ms": 16.0, "error": 0.01})
    (device / "pareto_mnist.json").write_text(json.dumps({"points": new}))
    (device / "pareto_fashion.json").write_text(json.dumps({"points": points}))
    (tmp_path / "results" / "other").mkdir()
    return tmp_path / "results"


def test_the_page_names_every_run_and_shows_every_plot(results: Path, tmp_path: Path) -> None:
    page = write_report(tmp_path / "page.md", results).read_text()
    assert page.count("## a-processor") == 1
    assert "## other" not in page
    assert "| 1 | `0001_0123456789ab.json` |" in page
    assert "| 2 | `0002_0123456789ab.json` |" in page
    assert "| sample fashion-fp32 | 99 | 10 | 10 |  | 30 | whole / bare evaluations | 1.062 ± 0.011 |" in page
    assert "| pytorch ddim | 100 | 40 | 40 | 80 | 120 | pfdiff / this | 0.500 ± 0.010 |" in page
    assert "| first_sample fashion-fp32 | 300 | 900 | 200 |  |  |" in page
    assert "| command import pfdiff | 25 | 75 |  | 4.5 | 150 |" in page
    assert "| build | 3000 | 9000 |  |  |  |" in page
    assert "| fashion | ddim | 8 | diffusers 1 | 40 | 20 | onnxruntime 1, CPU, fp32 | 2.00 ± 0.04 | 2e-06 |" in page
    assert page.count("| 8 | 16.0 | 0.2500 | pfdiff:k=2,l=1 | 8 | 16.0 | 0.0625 | 4.00 |") == 2
    shown = [line.split("](")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(shown) == 4
    for path in shown:
        with Image.open(tmp_path / path) as image:
            assert image.width == 900
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == sorted(Path(path).name for path in shown)


def test_ticks_of_the_latencies_are_runs_and_commits(results: Path, tmp_path: Path, monkeypatch: Any) -> None:
    named: list[Any] = []
    draw = report.log_plot
    monkeypatch.setattr(
        report, "log_plot", lambda *curves, **words: named.append(words["x_names"]) or draw(*curves, **words)
    )
    write_report(tmp_path / "page.md", results)
    assert named == [{1: "1: 0123456", 2: "2: 0123456"}]


def test_nothing_stored_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stored runs in"):
        write_report(tmp_path / "page.md", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench"], "ENGINE is missing; give the directory"),
        (["bench", "my.engine", "--report"], "got ENGINE 'my.engine' and --report, expected one of them"),
    ],
)
def test_the_command_takes_an_engine_or_the_report(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_the_command_writes_the_page_of_what_is_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not list(RESULTS.glob("*/[0-9]*.json")):
        pytest.skip("no stored runs: not in a checkout")
    out = tmp_path / "page.md"
    assert main(["bench", "--report", "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text().startswith("# Benchmarks")
