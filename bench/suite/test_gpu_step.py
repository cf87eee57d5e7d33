"""The step kernel's bytes a second against a device copy of as many bytes, in one run.

Both are captured in graphs of many launches and walk over several sets of buffers, more than the caches hold, so that
neither launch gaps nor cache hits are measured. Sizes are those of one state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pfdiff.bench.measuring.machine import describe
from pfdiff.engine.compiler.compile import compile
from pfdiff.kernels.step import step
from pfdiff.kernels.table import Update, coefficients, updates
from pfdiff.kernels.variants import step_variant

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

MIB = 1 << 20
FOOTPRINT = 1 << 30  # bytes that the sets of one measurement hold together; no cache is a tenth of that
LAUNCHES = {1: 3000, 16: 400, 64: 100, 256: 40}  # by MiB of a state: 5 ms and more, beside 20 us to launch a graph
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def captured(launch: Callable[[int], object], sets: int, launches: int) -> Any:
    """A graph of launches that go over the sets in turn."""
    for n in range(sets):
        launch(n)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for n in range(launches):
            launch(n % sets)
    return graph


def measured(benchmark: Any, graph: Any, launches: int) -> float:
    """Seconds of one launch: the median over the rounds, by events before and after a replay."""
    benchmark.pedantic(graph.replay, rounds=15, iterations=1, warmup_rounds=3)
    return benchmark.stats.stats.median / launches


@pytest.mark.parametrize("size_mib", [1, 16, 64, 256])
@pytest.mark.parametrize("kind", ["copy", "scale", "fp32", "fp16", "bf16", "ddim"])
def test_step(cuda_benchmark: Any, kind: str, size_mib: int) -> None:
    """PFDiff's middle update (fp32, fp16, bf16 networks), DDIM's, and two copies that move what PFDiff's fp32 does.

    copy is the driver's own, scale a kernel of torch; the update is measured against the faster.
    """
    elements, launches = size_mib * MIB // 4, LAUNCHES[size_mib]
    if kind in ("copy", "scale"):
        floor = 16  # bytes per element, as the fp32 update
        sets = min(64, max(2, FOOTPRINT // (floor * elements)))
        pairs = [
            (torch.empty(2 * elements, device="cuda"), torch.rand(2 * elements, device="cuda")) for _ in range(sets)
        ]
        if kind == "copy":
            graph = captured(lambda n: pairs[n][0].copy_(pairs[n][1]), sets, launches)
        else:
            graph = captured(lambda n: torch.mul(pairs[n][1], 0.5, out=pairs[n][0]), sets, launches)
    else:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(kind, torch.float32)
        solver = "ddim" if kind == "ddim" else "pfdiff:k=2,l=1"
        program = compile(solver, "linear:1000", 8, grid="uniform")
        arrays: dict[str, Any] = {"p": program.p, "W": program.W, "w": program.w}
        update: Update = updates(**arrays, clip=False, separate=dtype != torch.float32)[3]
        numbers = coefficients(**arrays, init=program.init, q=program.q, c_in=program.c_in, clip=None)
        table = torch.from_numpy(numbers).cuda()
        variant = step_variant(program.buffers, update, NAMES[dtype], NAMES[dtype] if update.separate else None)
        floor = variant.read_floor + variant.write_floor
        sets = min(64, max(2, FOOTPRINT // (floor * elements)))
        buffers = [
            (
                torch.rand(program.buffers, elements, device="cuda"),
                torch.empty(elements, dtype=dtype, device="cuda") if update.separate else None,
                torch.rand(elements, device="cuda").to(dtype),
            )
            for _ in range(sets)
        ]
        graph = captured(lambda n: step(buffers[n][0], buffers[n][1], buffers[n][2], table, 3, update), sets, launches)
    seconds = measured(cuda_benchmark, graph, launches)
    cuda_benchmark.extra_info.update(
        machine=describe(),
        kind=kind,
        state_mib=size_mib,
        bytes_per_element=floor,
        sets=sets,
        launches=launches,
        us_per_launch=1e6 * seconds,
        gb_per_s=floor * elements / seconds / 1e9,
    )
