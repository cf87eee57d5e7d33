"""--device, --target and what `info` says of plans and of how an engine runs; the bars of a TensorRT build."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.spinner import Spinner

from pfdiff.cli import main
from pfdiff.cli.output.progress import Stages

NETWORK = """
import torch


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) + 0.001 * t[:, None, None, None].to(x.dtype)
"""
BUILD = ["build", "tiny.py:Tiny", "--shape", "3x8x8", "--schedule", "linear:1000", "--prediction", "eps", "--nfe", "4"]
BUILD += ["--grid", "uniform", "-o", "tiny.engine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("devices")
    (place / "tiny.py").write_text(NETWORK)
    return place


@pytest.fixture
def work(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return folder


def test_plans_for_other_gpus_are_built_and_listed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    assert main([*BUILD, "--target", "sm89,sm86,sm89", "--device", "cpu"]) == 0
    assert "tiny.engine is ready, with plans for sm89, sm86" in capsys.readouterr().out
    assert len(list(Path("tiny.engine/plans").glob("tensorrt_rtx-*.plan"))) == 2
    assert main(["info", "tiny.engine"]) == 0
    out = capsys.readouterr().out
    assert "for sm86" in out
    assert "for sm89" in out
    assert main(["info", "tiny.engine", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert {one["capability"] for one in plans.values()} == {"sm86", "sm89"}


def test_info_says_how_an_engine_runs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BUILD, "--device", "cpu"]) == 0
    assert main(["info", "tiny.engine", "--device", "cpu"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "schedule runs evaluation by evaluation on the CPU" in out
    assert "chosen the default for fp32 on a CPU" in out
    assert main(["info", "tiny.engine", "--device", "auto", "--json"]) == 0
    running = json.loads(capsys.readouterr().out)["running"]
    assert set(running) == {"device", "backend", "chosen", "schedule runs"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*BUILD, "--target", "86"], "target '86' is no compute capability; expected for example sm86,sm89,sm120"),
        ([*BUILD, "--target", "sm37"], "has no sm37; it builds for sm75, sm80"),
        ([*BUILD, "--device", "gpu"], "device 'gpu', expected auto, cpu, cuda or cuda:N"),
        ([*BUILD, "--backend", "tensorrt_rtx", "--device", "cpu"], "needs an NVIDIA GPU"),
        (["sample", "tiny.engine", "--device", "cuda:x", "-o", "x.npy"], "device 'cuda:x'"),
    ],
)
def test_what_is_refused(words: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "sm37" in words or "tensorrt_rtx" in words:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    if words[0] == "sample" and not Path("tiny.engine").exists():
        assert main([*BUILD, "--device", "cpu"]) == 0
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_the_phases_of_a_build_are_bars_until_they_are_done() -> None:
    phases = Progress(console=Console(file=io.StringIO()))
    stages = Stages(Spinner("dots", text=""), phases)
    stages("building the plan for sm89")
    stages.step("build", 0, 3)
    stages.step("inner [phase]", 0, 2)
    assert len(phases.tasks) == 2
    stages.step("inner [phase]", 2, 2)
    stages.step("build", 2, 3)
    assert [(task.description, task.completed, task.total) for task in phases.tasks] == [("build", 2, 3)]
    stages.step("build", 3, 3)
    assert not phases.tasks
    assert stages.last == "building the plan for sm89"
    Stages().step("nowhere", 1, 2)
