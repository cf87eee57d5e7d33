"""bench/gpu.py: without a GPU one line and status 2; a part that fails or hangs costs nobody else's results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pfdiff.bench import gpu
from pfdiff.bench.suite import test_gpu_step

SLOW = """
import time

import pytest

FACTS = dict(machine={"gpu": "none"}, kind="copy", state_mib=1, gb_per_s=100.0)


@pytest.mark.gpu
def test_quick(benchmark):
    benchmark.extra_info.update(FACTS)
    benchmark.pedantic(lambda: None, rounds=2)


@pytest.mark.gpu
def test_wrong_but_measured(benchmark):
    benchmark.extra_info.update({**FACTS, "kind": "fp32"})
    benchmark.pedantic(lambda: None, rounds=2)
    assert False, "another sample"


@pytest.mark.gpu
def test_slow(benchmark):
    benchmark.extra_info.update({**FACTS, "kind": "fp16"})
    benchmark.pedantic(lambda: time.sleep(WARM_UP), rounds=ROUNDS, warmup_rounds=1)
"""
FAILING = "import pytest\n\n\n@pytest.mark.gpu\ndef test_wrong():\n    assert False\n"

EVENTS = """
from pfdiff.bench.conftest import cuda_benchmark  # the fixture
from pfdiff.engine.runtime.timing import latency


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
    assert gpu.main(["tests"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("make gpu: no NVIDIA GPU found (torch ")
    assert "\n" not in error


def test_a_part_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["tests,speed"]) == 2
    assert capsys.readouterr().err == "make gpu: PARTS=speed, expected some of tests,step,sampler,peers\n"


@pytest.mark.parametrize("words", [["--table"], ["--table", "nowhere"], ["--table", ".", "."]])
def test_a_table_of_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(words) == 2
    assert capsys.readouterr().err == f"make gpu: {' '.join(words)}, expected --table and a folder of results\n"


def test_every_call_stays_within_its_time() -> None:
    """The calls that are recommended: correctness alone in 120 seconds, the others in 150; side by side costs once."""
    seconds = {name: max(part.seconds for part in parts) for name, parts in gpu.CALLS.items()}
    assert seconds["tests"] <= 120
    assert seconds["step"] + seconds["sampler"] <= 150
    assert seconds["peers"] <= 150
    files = [f"{part.name}.jsonl" for parts in gpu.CALLS.values() for part in parts]
    assert len({*files, "gpu.json", "gpu.log", "tensorrt.jsonl"}) <= 8  # that may come back from a lent machine


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU that is none, and where results go."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    monkeypatch.setattr(gpu, "_device", lambda: {"name": "Pretended GPU"})
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # else the parts' benchmarks would be disabled
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_parts_of_several_calls_are_one_record(
    pretended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    (tmp_path / "test_quick.py").write_text(SLOW.replace("WARM_UP", "0").replace("ROUNDS", "1"))
    calls = {
        "tests": (gpu.Part("first", (str(tmp_path / "test_failing.py"),), 60),),
        "step": (gpu.Part("step", (str(tmp_path / "test_quick.py"),), 60),),
    }
    monkeypatch.setattr(gpu, "CALLS", calls)
    assert gpu.main(["tests"]) == 1
    assert gpu.main(["step"]) == 1
    parts = json.loads((pretended / "gpu.json").read_bytes())["parts"]
    assert {name: (one["status"], one["tests"]) for name, one in parts.items()} == {
        "first": ("failed", {"failed": 1}),
        "step": ("failed", {"passed": 2, "failed": 1}),
    }
    assert parts["step"]["device"] == {"name": "Pretended GPU"}
    printed = capsys.readouterr().out
    assert "step copy     1 MiB      100 GB/s  100.0 % of the faster copy" in printed
    assert "step fp32     1 MiB      100 GB/s" in printed  # a sample that differs keeps its figures
    assert "test_failing.py::test_wrong - assert False" in printed
    assert "test_wrong_but_measured - AssertionError: another sample" in printed
    (pretended / "gpu.json").unlink()
    assert gpu.main(["--table", str(pretended)]) == 0  # on a machine without a GPU
    assert json.loads((pretended / "gpu.json").read_bytes())["parts"] == parts


@pytest.mark.parametrize(
    ("warm_up", "rounds"), [("600", "1"), ("0.2", "1000")], ids=["before its first round", "between its rounds"]
)
@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_what_is_cut_off_keeps_the_rows_that_are_done(
    warm_up: str, rounds: str, how: str, pretended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_slow.py").write_text(SLOW.replace("WARM_UP", warm_up).replace("ROUNDS", rounds))
    part = gpu.Part("step", (str(tmp_path / "test_slow.py"),), 1000)
    monkeypatch.setattr(gpu, "CALLS", {"step": (part,)})
    if how == "killed":
        monkeypatch.setattr(gpu.subprocess.Popen, "send_signal", lambda self, _: os.kill(self.pid, signal.SIGKILL))
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    pretended.mkdir()
    try:
        with open(tmp_path / "log", "wb") as log, tempfile.TemporaryDirectory() as temporary:
            os.symlink(gpu.ROOT, Path(temporary, "pfdiff"), target_is_directory=True)
            process, begun = gpu._start(part, Path(temporary), pretended, log, {})
            while time.time() < begun + 100 and sum("figures" in line for line in lines(pretended, "step")) < 2:
                time.sleep(0.1)
            time.sleep(1)  # now it is in the third
            monkeypatch.setattr(gpu, "INTERRUPTED_SECONDS", 60)
            status = gpu._finish(process, time.time())
    finally:
        signal.signal(signal.SIGINT, former)
    assert status == "stopped: no time left"
    rows = [line for line in lines(pretended, "step") if "figures" in line]
    assert [line["figures"]["kind"] for line in rows] == ["copy", "fp32"]
    if how == "interrupted":
        assert "ValueError" not in (tmp_path / "log").read_text()  # pytest-benchmark's, over the row without a round


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    whole = {"figures": {"kind": "copy", "state_mib": 1, "gb_per_s": 3.0}, "median_s": 1.0}
    (tmp_path / "step.jsonl").write_text(f'{{"begun": 1}}\n{json.dumps(whole)}\n{{"figures": {{"ki')
    assert len(gpu._table(tmp_path)) == 1
    gpu.write_record(tmp_path)
    assert json.loads((tmp_path / "gpu.json").read_bytes())["parts"]["step"]["status"] == "killed"


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


def test_the_profiler_comes_after_everything_that_is_timed() -> None:
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*words, "bench/suite/test_gpu_sampler.py"], cwd=gpu.ROOT, capture_output=True, text=True, env=alone
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    kinds = [name.partition("[")[0] for name in found]
    assert kinds == ["test_sample"] * kinds.count("test_sample") + ["test_what_a_call_asks_for"] * 3
    networks = [name.partition("[")[2].partition("-")[0] for name in found if name.endswith("graph]")]
    assert list(dict.fromkeys(networks)) == ["fashion", "policy", "cifar", "latents"]
    assert networks.count("latents") == 1


@pytest.mark.parametrize("size_mib", test_gpu_step.LAUNCHES)
def test_a_replay_is_long_beside_its_launch(size_mib: int) -> None:
    """5 ms, beside 20 us in which the host starts it; a kernel takes its bytes at 4.8 TB/s (H200), or 2 us at least."""
    each = max(16 * size_mib * test_gpu_step.MIB // 4 / 4.8e12, 2e-6)
    assert test_gpu_step.LAUNCHES[size_mib] * each >= 5e-3


def test_no_test_or_benchmark_is_left_out() -> None:
    run = sorted(file for parts in gpu.CALLS.values() for part in parts for file in part.files)
    root = Path(__file__).parents[2]
    there = [*root.glob("tests/gpu/test_*.py"), *root.glob("bench/suite/test_gpu_*.py")]
    assert run == sorted(str(path.relative_to(root)) for path in there)


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu._commit() is None


def test_results_are_named_after_the_device() -> None:
    assert gpu.slug("NVIDIA H200") == "nvidia-h200"
