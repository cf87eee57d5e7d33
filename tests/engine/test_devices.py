"""Which device and which backend: chosen, refused and explained, with torch.cuda replaced by what a machine says."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pfdiff.engine import device
from pfdiff.engine.backends import choose, registry
from pfdiff.engine.backends.abstract import CudaOptions, NetworkFiles
from pfdiff.engine.device import check_batch_fits, check_fits, parse_device, why_not_cuda
from pfdiff.engine.errors import BackendError, InputError

from ..small.engine import CONTRACT, small

CUDA = torch.device("cuda", 0)
MIB = 1 << 20


@dataclass
class Machine:
    """What torch.cuda says; the default is one H200 with a torch built for it."""

    toolkit: str | None = "13.0"
    available: bool = True
    count: int = 1
    capability: tuple[int, int] = (9, 0)
    name: str = "NVIDIA H200"
    kernels: list[str] = field(default_factory=lambda: ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"])
    free: int = 1000 * MIB
    reserved: int = 0
    allocated: int = 0
    graphs: int = 900 * MIB  # of a captured graph, and of another device

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", self.toolkit)
        answers = {
            "is_available": self.available,
            "device_count": self.count,
            "get_device_capability": self.capability,
            "get_device_name": self.name,
            "get_arch_list": self.kernels,
            "mem_get_info": (self.free, 2 * self.free),
            "memory_snapshot": [
                {"device": 0, "segment_pool_id": (0, 0), "total_size": self.reserved, "allocated_size": self.allocated},
                {"device": 0, "segment_pool_id": (0, 7), "total_size": self.graphs, "allocated_size": 0},
                {"device": 1, "segment_pool_id": (0, 0), "total_size": self.graphs, "allocated_size": 0},
            ],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)


def libraries(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: name if name in installed else None)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Backends are not opened but noted."""
    calls: list[tuple[str, str]] = []

    def note(name: str, source: NetworkFiles, threads: int | None, where: Any = None) -> Any:
        calls.append((name, str(where)))
        return types.SimpleNamespace(name=name, device=where)

    monkeypatch.setattr(choose, "open_backend", note)
    return calls


def source(module: Any = None) -> NetworkFiles:
    return NetworkFiles(Path("none/network.onnx"), CONTRACT, module, options=CudaOptions())


# Devices.
def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(count=2).install(monkeypatch)
    assert parse_device("auto") is None
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device("cuda") == CUDA
    assert parse_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("given", ["gpu", "cuda:", "cuda:-1", "cuda:1.0", "xpu", "", 0, None])
def test_words_that_are_no_device(given: object) -> None:
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N"):
        parse_device(given)


@pytest.mark.parametrize(
    ("machine", "asked", "message"),
    [
        (Machine(toolkit=None), "cuda", "is a build without CUDA; give device='cpu'"),
        (Machine(available=False), "cuda", "finds no NVIDIA GPU or no driver that serves CUDA 13.0"),
        (Machine(count=1), "cuda:3", "this machine has one GPU, cuda:0;"),
        (Machine(count=4), "cuda:4", "this machine has 4 GPUs, cuda:0 to cuda:3;"),
        (
            Machine(capability=(3, 7), name="Tesla K80"),
            "cuda",
            "has no kernels for Tesla K80, compute capability 3.7, only 75, 80, 86, 90, 100, 120",
        ),
    ],
)
def test_devices_that_are_not_there(
    machine: Machine, asked: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install(monkeypatch)
    with pytest.raises(BackendError, match=message) as caught:
        parse_device(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kernels", "capability", "runs"),
    [
        ("sm_86", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_86", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("compute_90", (12, 1), True),
        ("compute_120", (9, 0), False),
        ("sm_120", (12, 1), True),
        ("gfx90a", (9, 0), False),
    ],
)
def test_which_kernels_run_where(
    kernels: str, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(kernels=[kernels], capability=capability).install(monkeypatch)
    assert (why_not_cuda() == "") == runs


# Memory.
def test_memory_is_compared_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(free=100 * MIB, reserved=60 * MIB, allocated=20 * MIB).install(monkeypatch)
    check_batch_fits(7, 20 * MIB, CUDA)
    message = (
        "batch 8 needs 160 MiB on cuda:0, 140 MiB are free; the largest batch that fits is 7, build with --batch 7"
    )
    with pytest.raises(BackendError, match=message):
        check_batch_fits(8, 20 * MIB, CUDA)
    with pytest.raises(BackendError, match="batch 1 needs 141 MiB on cuda:0, 140 MiB are free; not even one fits"):
        check_batch_fits(1, 141 * MIB, CUDA)
    check_fits("the network", 140 * MIB, CUDA)
    with pytest.raises(BackendError, match="the network needs 141 MiB on cuda:0, 140 MiB are free"):
        check_fits("the network", 140 * MIB + 1, CUDA)


# The choice of a backend.
def fake_rtx(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    members = {name: name for name in capabilities}
    rtx = types.SimpleNamespace(__version__="1.7.1", ComputeCapability=types.SimpleNamespace(__members__=members))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)


def fake_onnxruntime(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    module = pytest.importorskip("pfdiff.engine.backends.onnxruntime_cuda")
    monkeypatch.setattr(module.onnxruntime, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("installed", "supported", "module", "provider", "chosen", "said"),
    [
        (("tensorrt", "torch"), (), small, False, "tensorrt", "the best that works on cuda:0"),
        (("tensorrt_rtx", "torch"), ("SM90",), small, False, "tensorrt_rtx", "tensorrt: not installed"),
        (("tensorrt_rtx", "torch"), ("SM89",), small, False, "torch", "tensorrt_rtx 1.7.1 does not support sm90"),
        (("torch", "onnxruntime"), (), None, True, "onnxruntime", "torch: it needs the module"),
        (("torch",), (), small, False, "torch", "tensorrt: not installed"),
    ],
)
def test_auto_takes_the_best_that_works_and_says_why(
    installed: tuple[str, ...],
    supported: tuple[str, ...],
    module: Any,
    provider: bool,
    chosen: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[tuple[str, str]],
) -> None:
    Machine().install(monkeypatch)
    libraries(monkeypatch, *installed)
    fake_rtx(monkeypatch, *supported)
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.13"))
    if provider:
        fake_onnxruntime(monkeypatch, "CUDAExecutionProvider")
    for where in (None, CUDA):
        backend, reason = choose.open_best(source(module), where, "auto", None)
        assert (backend.name, backend.device) == (chosen, CUDA)
        assert said in reason


def test_a_backend_that_fails_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().install(monkeypatch)
    libraries(monkeypatch, "tensorrt", "torch")
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.13"))

    def only_torch(name: str, *_: Any) -> Any:
        if name != "torch":
            raise BackendError("tensorrt 10.13 refuses the network: no such operator")
        return types.SimpleNamespace(name=name)

    monkeypatch.setattr(choose, "open_backend", only_torch)
    backend, reason = choose.open_best(source(small), CUDA, "auto", None)
    assert backend.name == "torch"
    assert "tensorrt: tensorrt 10.13 refuses the network" in reason


def test_auto_goes_to_the_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch, opened: list[tuple[str, str]]) -> None:
    libraries(monkeypatch, "onnxruntime", "torch")
    fake_onnxruntime(monkeypatch)
    Machine(toolkit=None).install(monkeypatch)
    backend, reason = choose.open_best(source(), None, "auto", None)
    assert (backend.name, str(backend.device), reason) == ("onnxruntime", "cpu", "the default for fp32 on a CPU")
    Machine().install(monkeypatch)
    with pytest.warns(
        RuntimeWarning, match="the GPU is not used: no backend runs this engine on cuda:0: tensorrt: not"
    ):
        backend, reason = choose.open_best(source(), None, "auto", None)
    assert (backend.name, str(backend.device)) == ("onnxruntime", "cpu")
    assert "onnxruntime-gpu" in reason
    assert opened[-1] == ("onnxruntime", "cpu")
    with pytest.raises(BackendError, match="no backend runs this engine on cuda:0: tensorrt: not installed"):
        choose.open_best(source(), CUDA, "auto", None)


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("tensorrt", None, r"needs the package tensorrt, which is not installed; pip install 'pfdiff\[tensorrt\]'"),
        ("tensorrt_rtx", CUDA, r"needs the package tensorrt_rtx, .*; pip install 'pfdiff\[rtx\]'"),
        ("openvino", CUDA, "backend 'openvino' on cuda:0: it runs on the CPU only"),
        ("torch", CUDA, "backend 'torch' on cuda:0: it needs the module"),
        ("onnxruntime", CUDA, "backend 'onnxruntime' on cuda:0: onnxruntime .* is a build without CUDA"),
    ],
)
def test_asked_for_and_refused(name: str, where: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().install(monkeypatch)
    libraries(monkeypatch, "onnxruntime", "openvino", "torch")
    fake_onnxruntime(monkeypatch)
    with pytest.raises(BackendError, match=message):
        choose.open_best(source(), where, name, None)


def test_tensorrt_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(toolkit=None).install(monkeypatch)
    libraries(monkeypatch, "tensorrt", "onnxruntime")
    with pytest.raises(BackendError, match="backend 'tensorrt' needs an NVIDIA GPU"):
        choose.open_best(source(), None, "tensorrt", None)
    with pytest.raises(BackendError, match="backend 'tensorrt' needs an NVIDIA GPU"):
        choose.check_runnable("tensorrt", "fp32", None, None)


def test_a_build_is_checked_before_it_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().install(monkeypatch)
    libraries(monkeypatch, "torch", "onnxruntime")
    fake_onnxruntime(monkeypatch)
    choose.check_runnable("auto", "bf16", small, None)  # the GPU's torch takes it, no CPU backend would
    with pytest.raises(BackendError, match="no backend runs bf16 here"):
        choose.check_runnable("auto", "bf16", None, torch.device("cpu"))
    with pytest.raises(BackendError, match="no backend runs this engine on cuda:0"):
        choose.check_runnable("auto", "fp32", None, CUDA)
    choose.check_runnable("auto", "fp32", None, None)


def test_capabilities_are_named_as_plans_are(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(capability=(12, 1)).install(monkeypatch)
    assert device.capability(CUDA) == "sm121"
