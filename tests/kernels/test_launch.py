"""Where Triton cannot launch: found out once, said in one line, and the plain twins take over. No GPU is needed.

What Triton 3.6 raises is raised here by Triton itself, on machines without a compiler, headers or driver.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pfdiff.kernels import launch, step
from pfdiff.kernels.table import Update, row_length

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    launch.why_not_triton.cache_clear()


def on_gpu(device: torch.device = CUDA) -> Any:
    return types.SimpleNamespace(is_cuda=True, device=device)


def without_a_gpu(monkeypatch: pytest.MonkeyPatch, raised: Exception | None = None, stored: int = 7) -> list[int]:
    """The probe's tensor is on the CPU and its launch stores `stored`, or raises; how often it was tried."""
    tried: list[int] = []

    def probe(blocks: int, arguments: Any, constants: Any) -> None:
        tried.append(blocks)
        if raised is not None:
            raise raised
        arguments[0].fill_(stored)

    zeros = torch.zeros
    monkeypatch.setattr(launch, "triton_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **kinds: zeros(*size, **kinds))
    monkeypatch.setattr(launch.PROBE, "launch", probe)
    return tried


def test_without_triton_the_kernels_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "tl", None)
    with pytest.warns(RuntimeWarning, match=r"^Triton is not installed; pip install triton; until then .* plain torch"):
        assert not launch.runs_triton(on_gpu())
    assert not launch.runs_triton(on_gpu())  # and only once: a second warning would be an error here


def test_a_launch_is_tried_once_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = without_a_gpu(monkeypatch)
    for device in (CUDA, CUDA, torch.device("cuda", 1)):
        launch.check_triton(device)
        assert launch.runs_triton(on_gpu(device))
    assert tried == [1, 1]
    launch.check_triton(torch.device("cpu"))
    assert not launch.runs_triton(torch.zeros(1))
    assert tried == [1, 1]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore"),
            r"\(RuntimeError: Failed to find C compiler\..*variable\.\); install a C compiler such as gcc, or name one",
        ),
        (
            subprocess.CalledProcessError(1, ["gcc", "main.c"]),
            r"\(CalledProcessError: .*\); install Python's headers \(python3-dev\)",
        ),
        (AssertionError("libcuda.so cannot found!"), r"install NVIDIA's driver, or name .* TRITON_LIBCUDA_PATH"),
        (OSError("what nobody foresaw"), r"\(OSError: what nobody foresaw\); install a triton for this torch"),
    ],
)
def test_whatever_fails_there_is_one_line(raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_gpu(monkeypatch, raised)
    with pytest.warns(RuntimeWarning, match=said) as caught:
        launch.check_triton(CUDA)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not launch.runs_triton(on_gpu())


def test_a_kernel_that_stores_something_else_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_gpu(monkeypatch, stored=8)
    with pytest.warns(RuntimeWarning, match="Triton's kernels compute something else"):
        assert not launch.runs_triton(on_gpu())


def test_the_plain_twin_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_gpu(monkeypatch, RuntimeError("Failed to find C compiler"))
    monkeypatch.setattr(step, "runs_triton", lambda _: launch.runs_triton(on_gpu()))
    states, table = torch.ones(1, 5), torch.zeros(1, row_length(1))
    table[0, 4:] = torch.tensor([2.0, 3.0])
    with pytest.warns(RuntimeWarning, match="install a C compiler"):
        step.step(states, None, torch.full((5,), 10.0), table, 0, Update(1, 1, False, False))
    assert states.tolist() == [[23.0] * 5]


BUILD = """
    import sys
    from triton.runtime import build
    from pfdiff.kernels.launch import _remedy
    try:
        build._build("probe", sys.argv[1], sys.argv[2], [], [], [], [])
    except Exception as error:
        print(_remedy(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is built for Linux")
@pytest.mark.parametrize(
    ("compiler", "remedy"),
    [
        (None, "install a C compiler such as gcc"),
        ("exit 1", "install Python's headers (python3-dev)"),
    ],
)
def test_what_triton_itself_raises_is_understood(compiler: str | None, remedy: str, tmp_path: Path) -> None:
    """A PATH with no compiler, and one whose gcc fails, as it does without Python.h."""
    pytest.importorskip("triton", reason="Triton is not installed")
    (tmp_path / "probe.c").write_text("#include <Python.h>\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    if compiler:
        (tools / "gcc").write_text(f"#!/bin/sh\n{compiler}\n")
        (tools / "gcc").chmod(0o755)
    words = [sys.executable, "-c", textwrap.dedent(BUILD), str(tmp_path / "probe.c"), str(tmp_path)]
    kept = {"PYTHONPATH": str(Path(launch.__file__).parents[2]), "HOME": str(tmp_path), "PATH": str(tools)}
    library = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""}
    done = subprocess.run(words, env=kept | library, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(remedy), done.stdout + done.stderr
