"""torch.compile as the default of backend torch on a GPU: when, at which price, and what happens when it fails."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pfdiff.engine.backends import compiling
from pfdiff.engine.backends.abstract import CudaOptions, NetworkFiles
from pfdiff.engine.backends.compiling import Compiled, compiled
from pfdiff.engine.backends.torch_cuda import TorchCuda

from ...small.engine import CONTRACT, Small, small
from ..test_devices import CUDA, Machine

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What torch.compile is asked for; it gives a function that doubles what the module returns."""
    asked: list[dict[str, Any]] = []

    def compile(module: Any, **settings: Any) -> Any:
        asked.append(settings)
        return lambda *inputs: 2 * module(*inputs)

    Machine().install(monkeypatch)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(compiling, "why_not_triton", lambda device: "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    return asked


def files(module: Any, **options: Any) -> NetworkFiles:
    return NetworkFiles(Path("none"), CONTRACT, module, options=CudaOptions(**options))


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_module_on_a_gpu_is_compiled_and_says_once_what_it_costs(gpu: list[dict[str, Any]], tmp_path: Path) -> None:
    module = Identity()
    with pytest.warns(
        RuntimeWarning, match=r"compiles 'small' at the first call of each batch size, .* minutes"
    ) as said:
        made = compiled(module, files(module), CUDA)
    assert len(said) == 1
    assert str(tmp_path / "pfdiff" / "inductor") in str(said[0].message)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "pfdiff" / "inductor")
    assert gpu == [{"dynamic": False, "mode": "max-autotune-no-cudagraphs"}]
    assert made(torch.ones(2)).tolist() == [2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(compiled(module, files(module), CUDA), Compiled)  # the next load finds it in the cache


@pytest.mark.parametrize(
    ("module", "device", "options", "triton"),
    [
        (Identity(), CUDA, {"compile": False}, ""),
        (Identity(), CPU, {}, ""),
        (double, CUDA, {}, ""),  # a function may do what no compiler follows
        (Identity(), CUDA, {}, "Triton cannot launch a kernel here"),
    ],
)
def test_what_is_not_compiled(
    module: Any,
    device: torch.device,
    options: dict[str, Any],
    triton: str,
    gpu: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "why_not_triton", lambda device: triton)
    assert compiled(module, files(module, **options), device) is module
    assert gpu == []


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def compile(module: Any, **settings: Any) -> Any:
        def run(*inputs: Any) -> Any:
            raise error

        return run

    monkeypatch.setattr(torch, "compile", compile)


@pytest.mark.filterwarnings("ignore:backend 'torch' compiles")
def test_what_the_compiler_refuses_runs_as_it_is(gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ValueError("unsupported: generator\nlong trace"))
    module = Identity()
    made = compiled(module, files(module), CUDA)
    with pytest.warns(
        RuntimeWarning, match=r"refuses the network \(ValueError: unsupported: generator\); it runs as it"
    ):
        assert made(torch.ones(2)).tolist() == [1, 1]
    assert made(torch.ones(2)).tolist() == [1, 1]  # in silence
    strict = compiled(module, files(module, compile=True), CUDA)
    with pytest.raises(ValueError, match="unsupported"):
        strict(torch.ones(2))


@pytest.mark.filterwarnings("ignore:backend 'torch' compiles")
def test_what_is_no_fault_of_the_compiler_is_raised(gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    module = Identity()
    failing(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        compiled(module, files(module), CUDA)(torch.ones(2))
    failing(monkeypatch, RuntimeError("operation not permitted when stream is capturing"))
    made = compiled(module, files(module), CUDA)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="stream is capturing"):
        made(torch.ones(2))


def test_a_module_that_is_wrong_itself_says_so(gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("its own")

    failing(monkeypatch, ValueError("of the compiler"))
    with pytest.warns(RuntimeWarning, match="compiles"):
        made = compiled(Wrong(), files(Wrong()), CUDA)
    with pytest.raises(KeyError, match="its own"):
        made(torch.ones(2))


def test_on_the_cpu_the_backend_tells_whether_it_is_compiled() -> None:
    assert "compiled" not in TorchCuda(files(Small()), CPU).description
    assert "compiled" not in TorchCuda(files(small), CPU).description
