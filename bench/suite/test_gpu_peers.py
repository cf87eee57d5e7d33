"""The same network, samples and precision drawn by others: plain PyTorch loops, torch.compile, diffusers if installed.

    pfdiff                 one graph of solver and network; the network as it is
    pfdiff compiled        the same with the network through torch.compile
    plain                  a loop in PyTorch, launched operation by operation
    plain compiled         the same with the network through torch.compile
    plain reduce-overhead  torch.compile's own graph of the network alone, replayed by the loop once an evaluation
    diffusers              the loop of its pipelines around its own scheduler

Small networks come first, each with all its rows, so that what is cut off are the large ones. Nothing is compared
across runs. A row is recorded with the error of its sample to pfdiff's of the same seeds, and fails above the
tolerance; where pfdiff's row was not run `error` is None.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pfdiff.bench.measuring.deadline import require
from pfdiff.bench.measuring.gpu_engines import contract_of, engine_of, module_of, program_of
from pfdiff.bench.measuring.machine import describe
from pfdiff.bench.measuring.peers import difference, diffusers_loop, has_diffusers, plain_ddim, plain_program
from pfdiff.engine.backends.abstract import Buffers, CudaOptions
from pfdiff.engine.backends.casting import cast_copy
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.tensors import PRECISION_DTYPES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

NFE = 8
ROUNDS = {"fashion": 40, "policy": 40, "cifar": 20, "latents": 6}
PFDIFF = "pfdiff:k=2,l=1"
SETTINGS = {"ddim": {"grid": "trailing"}, PFDIFF: {"grid": "uniform"}}
TOLERANCE = {"fp32": 1e-4, "fp16": 0.05}  # of the largest element; both round to fp16, in operations of their own
WHO = ("pfdiff", "plain", "pfdiff compiled", "plain compiled", "plain reduce-overhead", "diffusers")
# network, who, solver, batch, precision
ROWS = [
    *(("fashion", who, "ddim", 1, "fp16") for who in WHO),
    *(("policy", who, "ddim", 1, "fp16") for who in WHO),
    *(("fashion", who, PFDIFF, 1, "fp16") for who in WHO[:2]),
    *(("fashion", who, "ddim", 8, "fp16") for who in WHO[:2]),
    *(("fashion", who, "ddim", 1, "fp32") for who in WHO[:2]),
    *(("cifar", who, "ddim", 1, "fp16") for who in WHO),
    *(("latents", who, "ddim", 1, "fp16") for who in WHO[:2]),
]

drawn: dict[tuple[str, str, int, str], torch.Tensor] = {}  # pfdiff's samples by network, solver, batch, precision


@pytest.fixture(scope="module", name="network")
def modules(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    require(request.param)
    module = module_of(request.param)
    yield request.param, module
    del module
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.filterwarnings("ignore:backend 'torch' compiles")
@pytest.mark.parametrize(
    ("network", "who", "solver", "batch", "precision"),
    ROWS,
    indirect=["network"],
    ids=["-".join(map(str, row)).replace(" ", "_") for row in ROWS],
)
def test_peer(cuda_benchmark: Any, network: tuple[str, Any], who: str, solver: str, batch: int, precision: str) -> None:
    name, module = network
    compiled = who.endswith(("compiled", "overhead"))
    require(name, compiled=compiled)
    facts = {"who": who, "solver": solver, "batch": batch, "precision": precision}
    if who.startswith("pfdiff"):
        options, shared = CudaOptions(compile=compiled), {"precision": precision, "solver": solver, **SETTINGS[solver]}
        with engine_of(name, module, nfe=(NFE,), batch=(batch,), options=options, **shared) as engine:
            given: dict[str, Any] = engine.contract.stand_ins
            timed(cuda_benchmark, name, lambda: engine.sample(seeds=range(batch), **given), **facts)
            cuda_benchmark.extra_info["execution"] = engine.execution
        return

    # The peers get the same weights in the same layout; only the loop around them is theirs.
    program, contract = program_of(name, NFE, solver, **SETTINGS[solver]), contract_of(name, precision)
    dtype = PRECISION_DTYPES[precision]
    evaluated: Any = cast_copy(module, dtype, "cuda").eval()
    if dtype != torch.float32 and len(contract.shape) == 3:
        evaluated = evaluated.to(memory_format=torch.channels_last)
    if compiled:
        mode = "reduce-overhead" if who.endswith("overhead") else "max-autotune-no-cudagraphs"
        evaluated = torch.compile(evaluated, dynamic=False, mode=mode)
    conditions = Buffers.of(contract, batch, dtype, "cuda").conditions
    if who == "diffusers":
        if not has_diffusers():
            pytest.skip("diffusers is not installed")
        draw = diffusers_loop(evaluated, program, dtype, conditions)
    else:
        draw = (plain_ddim if solver == "ddim" else plain_program)(evaluated, program, dtype, conditions)
    z = noise(range(batch), contract.shape, "cuda")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        timed(cuda_benchmark, name, lambda: draw(z), **facts)


def timed(benchmark: Any, name: str, sample: Callable[[], torch.Tensor], **facts: Any) -> None:
    """Time calls by events before and after their launches, record, then fail if the sample is not pfdiff's."""
    start = time.perf_counter()
    x = sample()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    key = name, facts["solver"], facts["batch"], facts["precision"]
    if facts["who"] == "pfdiff":
        drawn[key] = x.cpu()
    expected = drawn.get(key)
    error = None if expected is None else difference(x.cpu(), expected)
    benchmark.extra_info.update(machine=describe(), network=name, nfe=NFE, first_s=first, error=error, **facts)
    benchmark.pedantic(sample, rounds=ROUNDS[name], iterations=1, warmup_rounds=2)
    allowed = TOLERANCE[facts["precision"]]
    assert error is None or error <= allowed, f"{facts['who']}: another sample, by {error:.1e}, allowed are {allowed:g}"
