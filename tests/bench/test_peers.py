"""What stands beside a peer: always the same backend of ours, and the same sample before anything is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor

from pfdiff.bench.measuring import cases
from pfdiff.bench.measuring.cases import Engines
from pfdiff.bench.measuring.peers import same_sample, why_not_compiled
from pfdiff.engine.errors import PfdiffError

from ..small.engine import program, write_engine


@pytest.mark.parametrize(("network", "backend"), [("fashion", "onnxruntime"), ("cifar", "openvino")])
def test_our_backend_is_the_same_in_every_run(monkeypatch: pytest.MonkeyPatch, network: str, backend: str) -> None:
    monkeypatch.setattr(cases, "device_of", lambda: "cpu")
    monkeypatch.setattr(cases, "is_installed", lambda name: True)
    assert cases.backend_of(network) == backend
    monkeypatch.setattr(cases, "is_installed", lambda name: name == "onnxruntime")
    assert cases.backend_of(network) == "onnxruntime"


def test_on_a_gpu_an_own_network_is_there_as_a_module_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorRT and ONNX Runtime for GPUs only backend torch runs it there."""
    write_engine(tmp_path / "fashion_fp32.engine")
    given: dict[str, Any] = {}
    monkeypatch.setattr(cases, "device_of", lambda: "cuda")
    monkeypatch.setattr(cases.Engine, "open", lambda artifact, **options: given.update(options))
    with Engines(tmp_path) as engines:
        engines.with_program("fashion", program(4), cases.backend_of("fashion"))
    assert (given["device"], given["backend"]) == ("cuda", "auto")
    assert isinstance(given["module"], torch.nn.Module)


def test_without_a_compiler_torch_compile_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    assert why_not_compiled().startswith("torch.compile: No working C++ compiler found")


def test_another_sample_is_refused() -> None:
    expected = torch.tensor([[1.0, -4.0]])
    assert same_sample("somebody", expected.numpy() + 0.02, expected, 0.01) == pytest.approx(0.005)
    for wrong in (expected + 0.05, expected * torch.nan):
        with pytest.raises(PfdiffError, match="somebody: another sample, by "):
            same_sample("somebody", wrong, expected, 0.01)
