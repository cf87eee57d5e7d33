"""Whole samples on a GPU against their bare evaluations, graph against eager launches, by network, precision and batch.

The floor of a row is its N evaluations in a graph of their own, timed in turns with whole calls.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from pfdiff.bench.measuring.gpu_engines import engine_of, module_of
from pfdiff.bench.measuring.machine import describe
from pfdiff.bench.measuring.networks import parameters
from pfdiff.bench.measuring.profiling import allocations, allocator_requests, launches, runtime_calls, waits
from pfdiff.engine.backends.abstract import CudaOptions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

NFE = 8
UNTIL = float(os.environ.get("PFDIFF_GPU_UNTIL", "inf"))  # seconds since 1970: no new measurement after it
ROUNDS = {"fashion": 60, "cifar": 30, "latents": 8}


@pytest.fixture(scope="module", params=["fashion", "cifar", "latents"])
def network(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    if time.time() > UNTIL:
        pytest.skip("no time left")
    module = module_of(request.param)
    yield request.param, module
    del module
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize(
    ("batch", "precision"),
    [(1, "fp16"), (1, "fp32"), (1, "bf16"), (8, "fp16"), (8, "fp32"), (64, "fp16"), (64, "fp32")],
)
def test_sample(benchmark: Any, network: tuple[str, Any], batch: int, precision: str, graph: bool) -> None:
    name, module = network
    if name == "latents" and (batch > 8 or (precision != "fp16" and batch > 1) or (not graph and batch > 1)):
        pytest.skip("not measured: too long for the time there is")
    if time.time() > UNTIL:
        pytest.skip("no time left")
    rounds = ROUNDS[name] if batch < 64 else max(8, ROUNDS[name] // 3)
    options = CudaOptions(graph=graph)
    with engine_of(name, module, nfe=(NFE,), batch=(batch,), precision=precision, options=options) as engine:
        figures = engine.bench(NFE, batch, rounds)

        def whole() -> None:
            engine.sample(seeds=range(batch))
            engine._session.wait()

        benchmark.pedantic(whole, rounds=rounds, iterations=1, warmup_rounds=2)
        calls = runtime_calls(whole)
        inside = runtime_calls(lambda: engine.sample(seeds=range(batch)))
        requests = allocator_requests(lambda: engine.sample(seeds=range(batch)))
        benchmark.extra_info.update(
            machine=describe(),
            network=name,
            parameters=parameters(module),
            graph=graph,
            execution=engine.execution,
            description=engine.description,
            figures=asdict(figures),
            launches=launches(calls),
            waits=dict(waits(inside)),
            driver_allocations=dict(allocations(inside)),
            allocator_requests=requests,
        )
