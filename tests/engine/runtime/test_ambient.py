"""What the caller has set in torch changes no sample: default dtype and device, inference mode, autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.api import Engine
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends.abstract import NetworkFiles
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.runtime.cuda.batch import BatchKind, CudaBatch
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.session import Session
from pfdiff.engine.tensors import fill, lasting

from ...small.engine import CONTRACT, SHAPE, Small, program, small
from .test_session import Direct

PLAIN = replace(CONTRACT, conditions=())
CPU = torch.device("cpu")


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Any] = {
    "inference mode": torch.inference_mode,
    "float64": default_dtype,
    "another device": lambda: torch.device("meta"),  # as cuda would be: nothing there can be read
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
surroundings = pytest.mark.parametrize("name", SURROUNDINGS)


def contract_of(prediction: str, precision: str) -> Contract:
    schedule = "edm" if prediction == "edm" else "linear:1000"
    return replace(PLAIN, prediction=prediction, schedule=schedule, precision=precision)


@surroundings
@pytest.mark.parametrize(("prediction", "dtype"), [("eps", torch.float32), ("edm", torch.float32), ("eps", torch.half)])
def test_the_loop_on_the_cpu(name: str, prediction: str, dtype: torch.dtype) -> None:
    contract = contract_of(prediction, "fp16" if dtype == torch.half else "fp32")
    tables, keys = make_tables(program(4, contract), contract), np.arange(3, dtype=np.uint64)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.7 * x)

    def draw(session: Session, *, pixels: bool) -> torch.Tensor:
        return session.run(tables, Inputs(keys, None, ()), pixels=pixels)

    plain, session = Session(Direct(network, dtype), contract, (4,)), Session(Direct(network, dtype), contract, (4,))
    for pixels in (False, True):
        expected = draw(plain, pixels=pixels)
        with SURROUNDINGS[name]():
            first = draw(session, pixels=pixels)
        assert torch.equal(first, expected)
        assert torch.equal(draw(session, pixels=pixels), expected)


@surroundings
def test_the_module_on_the_cpu(name: str) -> None:
    weight = torch.linspace(-1, 1, 30 * 30).view(30, 30)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ weight).view_as(x).tanh()  # a product is what autocast rounds

    def engine() -> Engine:
        artifact = Artifact(Path("none"), PLAIN, (4,), "fp32", {4: program(4, PLAIN)})
        return Engine.open(artifact, device="cpu", backend="torch", module=network)

    with engine() as plain:
        expected = plain.sample(seeds=range(4))
    with SURROUNDINGS[name]():
        changed = engine()
        first = changed.sample(seeds=range(4))
    with changed:
        assert torch.equal(first, expected)
        assert torch.equal(changed.sample(seeds=range(4)), expected)


@surroundings
def test_the_buffers_of_the_device_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`CudaLoop` makes its samplers inside `lasting`; here on the CPU, with the plain ops."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    seeds, inputs = np.arange(3, dtype=np.uint64), (np.array([1, 5, 9]), np.zeros((3, 3, 1), np.float32))
    tables = make_tables(program(6), CONTRACT)
    results = []
    for surrounding in (contextlib.nullcontext, SURROUNDINGS[name]):
        with surrounding(), lasting():
            backend = TorchCuda(NetworkFiles(Path("none"), CONTRACT, Small().requires_grad_(False)), CPU)
            made = CudaBatch(backend, CONTRACT, tables, BatchKind(4, True, False))
        for inside in (surrounding, contextlib.nullcontext):
            with inside():
                made.load(Inputs(seeds, None, inputs))
                made.run()
            results.append(made.result.clone())
    for one in results[1:]:
        assert torch.equal(one, results[0])


def test_samplers_are_made_to_last(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, torch.device]] = []

    class Enough(Exception):
        pass

    def made(*_: Any) -> None:
        seen.append((torch.is_inference_mode_enabled(), torch.empty(0).device))
        raise Enough

    monkeypatch.setattr("pfdiff.engine.runtime.cuda.loop.CudaBatch", made)
    monkeypatch.setattr(torch.cuda, "Event", object)
    monkeypatch.setattr("pfdiff.engine.runtime.cuda.loop.check_batch_fits", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    backend = TorchCuda(NetworkFiles(Path("none"), PLAIN, small), CPU)
    backend.stream = object()  # type: ignore[assignment]
    loop = CudaLoop(backend, PLAIN)
    with torch.inference_mode(), torch.device("meta"), pytest.raises(Exception, match="sampling a batch of 4 failed"):
        loop._batch(make_tables(program(4, PLAIN), PLAIN), BatchKind(4, True, False), None)
    assert seen == [(False, CPU)]


def test_a_gpus_network_is_not_rounded_by_autocast() -> None:
    seen: list[bool] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cuda"))
        return x

    made = CudaBatch(
        TorchCuda(NetworkFiles(Path("none"), PLAIN, network), CPU),
        PLAIN,
        make_tables(program(4, PLAIN), PLAIN),
        BatchKind(2, True, False),
    )
    torch.set_autocast_enabled("cuda", True)
    try:
        made.run()
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert seen == [False] * 4


def test_pinned_memory_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def empty(*_: Any, **settings: Any) -> torch.Tensor:
        asked.append(settings["device"])
        return torch.zeros(2, 3, device="cpu")

    class OnDevice:
        is_cuda, dtype = True, torch.float32

        def __len__(self) -> int:
            return 2

        def __getitem__(self, _: Any) -> torch.Tensor:
            return torch.zeros(2, 3, device="cpu")

    monkeypatch.setattr(torch, "empty", empty)
    fill(OnDevice(), torch.ones(2, 3))  # type: ignore[arg-type]
    assert asked == ["cpu"]


@surroundings
def test_noise(name: str) -> None:
    expected = noise(range(3), SHAPE)
    with SURROUNDINGS[name]():
        assert torch.equal(noise(range(3), SHAPE), expected)
