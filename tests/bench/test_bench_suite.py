"""The benchmark suite on a small engine: every field is there, and means what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.bench.measuring.cases import Case, Engines

from ..small.engine import write_engine

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

FIELDS = {"per_sample_ms", "nfe", "batch", "backend", "device", "precision", "threads", "commit", "overhead_ratio"}
FIELDS |= {"floor_ms", "bytes", "peer", "p50_ms", "p90_ms", "p99_ms", "max_ms"}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("suite")
    write_engine(folder / "my.engine")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pfdiff.bench.options"]
    words += ["--pyargs", "pfdiff.bench", "--engine", "my.engine", "--seconds=0.01", "-k", "onnxruntime"]
    words += ["--benchmark-json=found.json"]
    alone = {
        name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"
    }  # it disables benchmarks
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "found.json").read_bytes())["benchmarks"]
    return {one["name"]: one for one in found}


@pytest.mark.parametrize("name", ["network", "sample", "update"])
def test_an_engine_that_nothing_runs_here_has_no_cases(name: str) -> None:
    assert import_module(f"pfdiff.bench.suite.test_{name}").select([]) == []


class Chosen:
    """The fixture `measure`, with times of its own."""

    def __call__(self, function: Any, beside: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        for one in (function, *beside.values()):
            one()
        return np.array([6.0, 2.0, 4.0]), {"copies": np.array([9.0, 1.0, 1.0])}

    def record(self, times: Any, case: Case, engine: Any, **facts: Any) -> None:
        self.times, self.facts = times, facts


def test_the_floor_of_an_update_is_one_copy(tmp_path: Path) -> None:
    """As many updates as copies in a round: the floor is to p50 as a round of copies to one of updates."""
    measure = Chosen()
    write_engine(tmp_path / "my.engine")
    case = Case(str(tmp_path / "my.engine"), "fp32", "onnxruntime", 6, 8)
    with Engines(tmp_path) as engines:
        import_module("pfdiff.bench.suite.test_update").test_update(measure, engines, case)
    assert measure.facts["floor_ms"] == pytest.approx(np.median(measure.times) / 4, rel=1e-12)


@pytest.mark.slow
def test_every_nfe_and_batch_of_the_engine_is_measured(benchmarks: dict[str, Any]) -> None:
    case = "my.engine-fp32-onnxruntime"
    samples = {f"test_sample[{case}-nfe{nfe}-batch{batch}]" for nfe in (4, 6) for batch in (1, 8)}
    assert samples == {name for name in benchmarks if name.startswith("test_sample[")}
    assert len([name for name in benchmarks if name.startswith(("test_network[", "test_update["))]) == 4
    assert len([name for name in benchmarks if name.startswith("test_first_sample[")]) == 1
    assert not [name for name in benchmarks if "fashion" in name]


@pytest.mark.slow
def test_every_field_is_recorded(benchmarks: dict[str, Any]) -> None:
    for name, one in benchmarks.items():
        info = one["extra_info"]
        assert set(info) >= FIELDS, name
        assert 0 < info["p50_ms"] <= info["p90_ms"] <= info["p99_ms"] <= info["max_ms"]
        assert info["per_sample_ms"] == info["p50_ms"] / info["batch"]
        assert (info["backend"], info["device"], info["peer"]) == ("onnxruntime", "cpu", None)
        for medians in info["ratios"].values():
            assert len(medians) == 3
            assert min(medians) > 0


@pytest.mark.slow
def test_the_fields_mean_what_they_say(benchmarks: dict[str, Any]) -> None:
    info = benchmarks["test_sample[my.engine-fp32-onnxruntime-nfe6-batch8]"]["extra_info"]
    assert info["overhead_ratio"] == sorted(info["ratios"]["whole / bare evaluations"])[1] > 1
    assert info["floor_ms"] < info["p50_ms"]
    assert sum(info["shares"].values()) == pytest.approx(1)
    update = benchmarks["test_update[my.engine-fp32-onnxruntime-nfe6-batch8]"]["extra_info"]
    assert update["bytes"] == 4 * 8 * 30 * 5  # two states and an output read, two states written, 8 samples of 30
    assert update["p50_ms"] < info["p50_ms"]
    network = benchmarks["test_network[my.engine-fp32-onnxruntime-nfe6-batch8]"]["extra_info"]
    assert network["floor_ms"] is None
