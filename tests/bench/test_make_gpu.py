"""bench/gpu.py: without a GPU one line and status 2; a part that fails or hangs costs nobody else's results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pfdiff.bench import gpu

SLOW = """
import time

import pytest


@pytest.mark.gpu
def test_quick(benchmark):
    benchmark.pedantic(lambda: None, rounds=2)
    benchmark.extra_info.update(machine={"gpu": "none"}, kind="copy", state_mib=1, gb_per_s=100.0)


@pytest.mark.gpu
def test_slow():
    time.sleep(600)
"""
FAILING = "import pytest\n\n\n@pytest.mark.gpu\ndef test_wrong():\n    assert False\n"

EVENTS = """
from pfdiff.bench.conftest import cuda_benchmark  # the fixture
from pfdiff.engine.runtime import latency


class Timer:  # an object, as the one of events is
    seconds = 0.0

    def __call__(self):
        self.seconds += 2.0
        return self.seconds


def timer_of(device):
    assert device.type == "cuda"
    return Timer()


latency.timer_of = timer_of


def test_replay(cuda_benchmark):
    cuda_benchmark.pedantic(lambda: None, rounds=3, iterations=1, warmup_rounds=2)
    cuda_benchmark.extra_info["median_s"] = cuda_benchmark.stats.stats.median
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("make gpu: no NVIDIA GPU found (torch ")
    assert "\n" not in error


@pytest.mark.slow
def test_parts_do_not_harm_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    (tmp_path / "test_failing.py").write_text(FAILING)
    (tmp_path / "test_slow.py").write_text(SLOW)
    parts = (
        ("first", (str(tmp_path / "test_failing.py"),), 120),
        ("step", (str(tmp_path / "test_slow.py"),), 60),
        ("never", (str(tmp_path / "test_slow.py"),), 1),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 5)
    monkeypatch.setattr(gpu, "INTERRUPTED_SECONDS", 40)  # ends as soon as the part does
    monkeypatch.setattr(gpu, "_device", lambda: {"name": "Pretended GPU"})
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # else the parts' benchmarks would be disabled
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    try:
        assert gpu.main() == 1
    finally:
        signal.signal(signal.SIGINT, former)
    outcome = json.loads((tmp_path / "out" / "gpu.json").read_bytes())["parts"]
    assert outcome["first"]["status"] == "failed"
    assert outcome["step"]["status"] == "stopped after 60 s"
    assert outcome["never"]["status"] == "no time left"
    printed = capsys.readouterr().out
    assert "step copy     1 MiB      100 GB/s  100.0 % of the faster copy" in printed
    assert "test_failing.py::test_wrong - assert False" in printed
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_figures_are_timed_by_the_device(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    (tmp_path / "test_events.py").write_text(EVENTS)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=found.json"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads((tmp_path / "found.json").read_bytes())["benchmarks"]
    assert found["stats"]["data"] == [2.0, 2.0, 2.0]
    assert found["extra_info"]["median_s"] == 2.0


def test_no_test_or_benchmark_is_left_out() -> None:
    run = sorted(argument for _, arguments, _ in gpu.PARTS for argument in arguments)
    root = Path(__file__).parents[2]
    there = [*root.glob("tests/gpu/test_*.py"), *root.glob("bench/suite/test_gpu_*.py")]
    assert run == sorted(str(path.relative_to(root)) for path in there)


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu._commit() is None


def test_results_are_named_after_the_device() -> None:
    assert gpu._slug("NVIDIA H200") == "nvidia-h200"
