"""Whole samples on a GPU against their bare evaluations, graph against eager launches, by network, precision and batch.

The floor of a row is its N evaluations in a graph of their own, timed in turns with whole calls. Small networks come
first: there one graph pays. The network runs as it is, not compiled: what stands around it is measured here. What a
call asks of the driver is counted last, since the profiler slows every call after it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from pfdiff.bench.measuring.deadline import require
from pfdiff.bench.measuring.gpu_engines import engine_of, module_of
from pfdiff.bench.measuring.machine import describe
from pfdiff.bench.measuring.networks import parameters
from pfdiff.bench.measuring.profiling import allocations, allocator_requests, copies, launches, runtime_calls, waits
from pfdiff.engine.backends.abstract import CudaOptions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

NFE = 8
ROUNDS = {"fashion": 60, "policy": 60, "cifar": 30, "latents": 8}
BATCHES = [(1, "fp16"), (1, "fp32"), (1, "bf16"), (8, "fp16"), (64, "fp16")]
ROWS = [
    *((name, batch, precision, True) for name in ("fashion", "policy", "cifar") for batch, precision in BATCHES),
    *((name, 1, "fp16", False) for name in ("fashion", "policy", "cifar")),
    ("latents", 1, "fp16", True),
]
HOST_CALLS = 200  # of which the host's time is the median


def modules(request: pytest.FixtureRequest) -> Iterator[Any]:
    require(request.param)
    module = module_of(request.param)
    yield module
    del module
    gc.collect()
    torch.cuda.empty_cache()


module = pytest.fixture(scope="module", name="module")(modules)
again = pytest.fixture(scope="module", name="again")(modules)  # pytest groups tests by such a fixture: these come last


@pytest.mark.parametrize(
    ("module", "batch", "precision", "graph"),
    ROWS,
    indirect=["module"],
    ids=[f"{name}-{precision}-batch{batch}-{'graph' if graph else 'eager'}" for name, batch, precision, graph in ROWS],
)
def test_sample(
    benchmark: Any, request: pytest.FixtureRequest, module: Any, batch: int, precision: str, graph: bool
) -> None:
    name = request.node.callspec.params["module"]
    require(name)
    rounds = ROUNDS[name] if batch < 64 else max(8, ROUNDS[name] // 3)
    options = CudaOptions(graph=graph, compile=False)
    with engine_of(name, module, nfe=(NFE,), batch=(batch,), precision=precision, options=options) as engine:
        figures, given = engine.bench(NFE, batch, rounds), dict[str, Any](engine.contract.stand_ins)

        def whole() -> None:
            engine.sample(seeds=range(batch), **given)
            engine._session.wait()

        benchmark.extra_info.update(
            machine=describe(),
            network=name,
            parameters=parameters(module),
            graph=graph,
            execution=engine.execution,
            description=engine.description,
            figures=asdict(figures),
        )
        benchmark.pedantic(whole, rounds=rounds, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("again", ["fashion", "policy", "cifar"], indirect=True)
def test_what_a_call_asks_for(benchmark: Any, request: pytest.FixtureRequest, again: Any) -> None:
    """Driver calls, allocations and the host's own time of one call that is not waited for."""
    name = request.node.callspec.params["again"]
    require(name)
    with engine_of(name, again, nfe=(NFE,), precision="fp16") as engine:
        given: dict[str, Any] = engine.contract.stand_ins

        def call() -> None:
            engine.sample(seeds=range(1), **given)

        for _ in range(3):
            call()
        host = []
        for _ in range(HOST_CALLS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            host.append(1e6 * (time.perf_counter() - start))
        calls = runtime_calls(call)
        benchmark.extra_info.update(
            machine=describe(),
            network=name,
            execution=engine.execution,
            host_us=sorted(host)[len(host) // 2],
            calls=dict(calls),
            launches=launches(calls),
            copies=dict(copies(calls)),
            waits=dict(waits(calls)),
            driver_allocations=dict(allocations(calls)),
            allocator_requests=allocator_requests(call),
        )
        benchmark.pedantic(call, rounds=10, iterations=1)
