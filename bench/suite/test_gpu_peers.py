"""The same network, samples and precision drawn by others: plain PyTorch loops, torch.compile, diffusers if installed.

Each row stands beside pfdiff's own of the same run. Nothing is compared across runs. Before a row is timed its sample
is compared with that of pfdiff's row of the same seeds, which comes first; where that was not run `error` is None.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pfdiff.bench.measuring.gpu_engines import NAMES, contract_of, engine_of, module_of, program_of
from pfdiff.bench.measuring.machine import describe
from pfdiff.bench.measuring.peers import diffusers_loop, has_diffusers, plain_ddim, plain_program, same_sample
from pfdiff.engine.backends.abstract import Buffers, CudaOptions
from pfdiff.engine.backends.casting import cast_copy
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.tensors import PRECISION_DTYPES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

NFE = 8
UNTIL = float(os.environ.get("PFDIFF_GPU_UNTIL", "inf"))  # seconds since 1970: no new measurement after it
ROUNDS = {"fashion": 40, "cifar": 20, "latents": 6}
SETTINGS = {"ddim": {"grid": "trailing"}, "pfdiff:k=2,l=1": {"grid": "uniform"}}
TOLERANCE = {"fp32": 1e-4, "fp16": 0.05}  # of the largest element; both round to fp16, in operations of their own
COMPILE_SECONDS = {"fashion": 40, "cifar": 75, "latents": 150}  # time that must be left to begin, a guess


def modules(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    if time.time() > UNTIL:
        pytest.skip("no time left")
    module = module_of(request.param)
    yield request.param, module
    del module
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


network = pytest.fixture(scope="module", params=NAMES, name="network")(modules)
again = pytest.fixture(scope="module", params=NAMES, name="again")(modules)  # what is compiled comes last

drawn: dict[tuple[str, str, int, str], torch.Tensor] = {}  # pfdiff's samples by network, solver, batch, precision


def timed(benchmark: Any, name: str, sample: Callable[[], torch.Tensor], **facts: Any) -> None:
    """Compare the first sample with pfdiff's, then time calls by events before and after their launches."""
    start = time.perf_counter()
    x = sample()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    key = name, facts["solver"], facts["batch"], facts["precision"]
    if facts["who"] == "pfdiff":
        drawn[key] = x.cpu()
    expected = drawn.get(key)
    error = None if expected is None else same_sample(facts["who"], x.cpu(), expected, TOLERANCE[facts["precision"]])
    benchmark.pedantic(sample, rounds=ROUNDS[name], iterations=1, warmup_rounds=2)
    benchmark.extra_info.update(machine=describe(), network=name, nfe=NFE, first_s=first, error=error, **facts)


PLAIN = [
    ("pfdiff", "ddim"),
    ("pfdiff", "pfdiff:k=2,l=1"),
    ("plain", "ddim"),
    ("plain", "pfdiff:k=2,l=1"),
    ("diffusers", "ddim"),
]
COMPILED = ["pfdiff compiled", "plain compiled", "plain reduce-overhead"]


@pytest.mark.parametrize(("batch", "precision"), [(1, "fp16"), (8, "fp16"), (1, "fp32")])
@pytest.mark.parametrize(("who", "solver"), PLAIN, ids=[" ".join(one) for one in PLAIN])
def test_peer(cuda_benchmark: Any, network: tuple[str, Any], who: str, solver: str, batch: int, precision: str) -> None:
    if network[0] == "latents" and (batch, precision) != (1, "fp16"):
        pytest.skip("not measured: too long for the time there is")
    if time.time() > UNTIL:
        pytest.skip("no time left")
    measure(cuda_benchmark, *network, who, solver, batch, precision)


@pytest.mark.parametrize("who", COMPILED)
def test_compiled_peer(cuda_benchmark: Any, again: tuple[str, Any], who: str) -> None:
    if time.time() + COMPILE_SECONDS[again[0]] > UNTIL:
        pytest.skip("no time left")
    measure(cuda_benchmark, *again, who, "ddim", 1, "fp16", compiled=True)


def measure(
    benchmark: Any, name: str, module: Any, who: str, solver: str, batch: int, precision: str, *, compiled: bool = False
) -> None:
    facts = {"who": who, "solver": solver, "batch": batch, "precision": precision}
    if who.startswith("pfdiff"):
        options, shared = CudaOptions(compile=compiled), {"precision": precision, "solver": solver, **SETTINGS[solver]}
        with engine_of(name, module, nfe=(NFE,), batch=(batch,), options=options, **shared) as engine:
            timed(benchmark, name, lambda: engine.sample(seeds=range(batch)), execution=engine.execution, **facts)
        return

    # The peers get the same weights in the same layout; only the loop around them is theirs.
    program, contract = program_of(name, NFE, solver, **SETTINGS[solver]), contract_of(name, precision)
    dtype = PRECISION_DTYPES[precision]
    same = cast_copy(module, dtype, "cuda").eval()
    if dtype != torch.float32:
        same = same.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    evaluated: Any = same
    if compiled:
        mode = "reduce-overhead" if who.endswith("overhead") else "default"
        evaluated = torch.compile(same, dynamic=False, mode=mode)
    conditions = Buffers.of(contract, batch, dtype, "cuda").conditions
    if who == "diffusers":
        if not has_diffusers():
            pytest.skip("diffusers is not installed")
        draw = diffusers_loop(evaluated, program, dtype, conditions)
    else:
        draw = (plain_ddim if solver == "ddim" else plain_program)(evaluated, program, dtype, conditions)
    z = noise(range(batch), contract.shape, "cuda")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        timed(benchmark, name, lambda: draw(z), **facts)
