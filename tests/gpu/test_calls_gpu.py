"""What a call of a captured schedule asks of a real GPU, counted, and what happens where a capture is refused.

What CPU tensors cannot show: that nothing in a replay waits or allocates. The bits are in test_sampler_gpu.py.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfdiff import BackendError, InputError
from pfdiff.bench.measuring.gpu_engines import engine_of
from pfdiff.bench.measuring.profiling import (
    allocator_requests,
    copies,
    launches,
    runtime_calls,
    waits,
)
from pfdiff.engine.api import Engine
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.noise import noise

from ..small.cuda import calls_of_one_launch
from ..small.engine import CONTRACT, SHAPE, Small, program
from .captured import samplers, small_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU with a driver and a CUDA build of torch"
    ),
]


# What happens inside a call.
def test_a_call_neither_waits_nor_allocates(fashion: torch.nn.Module) -> None:
    with engine_of("fashion", fashion, batch=(8,)) as engine:
        calls = calls_of_one_launch(lambda: engine.sample(seeds=range(8), label=1))
        assert launches(calls) <= 2  # the graph, and at most the copy of the result as a kernel
        assert sum(copies(calls).values()) <= 2  # seeds and conditions from the host, the result on the device
        assert allocator_requests(lambda: engine.sample(seeds=range(8), label=1)) <= 1  # the result


def test_the_launches_neither_wait_nor_allocate_where_the_network_does_not() -> None:
    """The loop itself, without a graph, under torch's own watch: a network that writes into what it has."""
    out = torch.zeros(8, *SHAPE, device="cuda")

    def network(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 0.5, out=out[: len(x)])

    with small_engine(network, batch=(8,), graph=False) as engine:
        engine.sample(seeds=range(8), nfe=6)
        engine.images(seeds=range(8), nfe=6)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for sampler in samplers(engine):
                assert allocator_requests(sampler.launch) == 0
                assert not waits(runtime_calls(sampler.launch))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_any_stream_may_call() -> None:
    with small_engine() as engine:
        expected = engine.sample(seeds=range(8), nfe=6)
        torch.cuda.synchronize()
        results = []
        for _ in range(4):
            with torch.cuda.stream(torch.cuda.Stream()):
                results.append(engine.sample(seeds=range(8), nfe=6) * 2)
        torch.cuda.synchronize()
        for one in results:
            assert torch.equal(one, 2 * expected)


def test_two_engines_in_two_threads() -> None:
    results: dict[int, torch.Tensor] = {}
    errors: list[BaseException] = []

    def work(which: int) -> None:
        try:
            with small_engine(batch=(1, 2, 4, 8)) as engine:
                found = [engine.sample(seeds=range(count), nfe=6, label=which) for count in (1, 2, 4, 8) * 5]
                results[which] = found[-1].clone()
        except BaseException as error:
            errors.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a capture may find the other thread busy and go on without a graph
        threads = [threading.Thread(target=work, args=(which,), daemon=True) for which in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=40)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert not errors
    with small_engine() as engine:
        for which in (0, 1):
            expected = engine.sample(seeds=range(8), nfe=6, label=which)
            assert torch.allclose(results[which], expected, rtol=1e-6, atol=1e-6)


# What cannot be.
def test_a_network_that_synchronises_runs_without_a_graph() -> None:
    def network(x: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.7 * x) + 0.001 * float(t[0])  # reads t back: refused inside a capture

    with small_engine(network) as engine, small_engine(network, graph=False) as eager:
        with pytest.warns(RuntimeWarning, match="cannot be captured in a CUDA graph"):
            x = engine.sample(seeds=range(8), nfe=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.sample(seeds=[3], nfe=4)
        assert engine.execution.startswith("kernel by kernel, not captured: ")
        assert torch.equal(x, eager.sample(seeds=range(8), nfe=4))
    with small_engine() as engine:  # the refused capture left nothing behind
        assert engine.sample(seeds=[1], nfe=4).isfinite().all()
        assert engine.execution == "one CUDA graph a batch"


def test_inside_somebody_elses_capture() -> None:
    with small_engine() as engine:
        engine.sample(seeds=[1], nfe=4)
        graph, x = torch.cuda.CUDAGraph(), torch.zeros(4, device="cuda")
        with torch.cuda.graph(graph):
            with pytest.raises(BackendError, match="is being captured in a CUDA graph, and an engine brings its own"):
                engine.sample(seeds=[1], nfe=4)
            x.add_(1)
        assert engine.sample(seeds=[1], nfe=4).isfinite().all()


def test_too_large_a_batch_says_what_fits() -> None:
    elements = 64 << 20

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 0.5

    contract = replace(CONTRACT, conditions=(), shape=(elements,))
    artifact = Artifact(Path("large"), contract, (1 << 16,), "fp32", {4: program(4, contract)})
    with Engine.open(artifact, device="cuda", backend="torch", module=network) as engine:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with pytest.raises(
            BackendError, match=r"batch 65536 needs \d+ MiB .* the largest batch that fits is \d+, build"
        ):
            engine.sample(seeds=[1], nfe=4)
        assert torch.cuda.max_memory_allocated() < before + 2**30


def test_samples_that_are_not_finite_are_found_at_the_first_call() -> None:
    with (
        small_engine(Small(float("nan"))) as engine,
        pytest.raises(BackendError, match="the samples are not finite: the network overflows in fp32 or gives NaN"),
    ):
        engine.sample(seeds=[1], nfe=4)


def test_graphs_are_dropped_oldest_first() -> None:
    with small_engine() as engine:
        loop = engine._session._loop
        assert isinstance(loop, CudaLoop)
        loop._largest = 2
        expected = engine.sample(seeds=[1], nfe=4)
        for nfe, count in ((6, 1), (4, 8), (6, 8)):
            engine.sample(seeds=range(count), nfe=nfe)
        assert len(samplers(engine)) == 2
        assert torch.equal(engine.sample(seeds=[1], nfe=4), expected)


def test_inputs_may_be_on_the_device() -> None:
    tables_inputs = Inputs(None, noise([1], SHAPE, "cuda").reshape(1, -1), ())
    assert tables_inputs.count == 1
    with small_engine() as engine:
        label = torch.tensor([4], device="cuda")
        x = engine.sample(noise=noise([1], SHAPE, "cuda"), nfe=4, label=label)
        assert x.device.type == "cuda"
        assert torch.equal(x, engine.sample(noise=noise([1], SHAPE, "cuda").cpu(), nfe=4, label=4))
        shift = torch.full((1, 3, 1), 0.25, device="cuda")
        calls = runtime_calls(lambda: engine.sample(noise=noise([1], SHAPE, "cuda"), nfe=4, label=label, shift=shift))
        assert not waits(calls), calls
        assert torch.equal(
            engine.sample(seeds=[1], nfe=4, label=label, shift=shift),
            engine.sample(seeds=[1], nfe=4, label=4, shift=shift.cpu()),
        )
        wrong = torch.tensor([10**6], device="cuda")
        with pytest.raises(InputError, match="'label'"):  # a kind of batch that was not run yet: values are looked at
            engine.sample(seeds=range(8), nfe=6, label=wrong.expand(8))
