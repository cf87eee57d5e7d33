"""The same samples drawn by others, beside our engine with the same solver at the same times.

Outputs are compared before anything is timed. A peer's ratio is our time over its own. Our backend on a CPU is fixed
and stands in the ratio's name: the fastest of one run may be another in the next, which would be another comparison.

The small network shows the schedulers, the large one the network. Through torch.compile there is only the small one:
compiling the large one takes longer than everything else together. Where the CPU has bf16, ours in bf16 stands beside
the float32 loop too, with the error that it costs in `error`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.bench.measuring.cases import NFE, OWN, Case, Engines, backend_of, device_of, feed
from pfdiff.bench.measuring.gpu_engines import module_of
from pfdiff.bench.measuring.measure import PAUSE_S, Measure
from pfdiff.bench.measuring.peers import (
    DIFFUSERS,
    diffusers_loop,
    diffusers_program,
    has_diffusers,
    numpy_ddim,
    plain_pfdiff,
    same_sample,
    why_not_compiled,
)
from pfdiff.bench.measuring.ratios import blocks
from pfdiff.engine.api import Engine
from pfdiff.engine.backends.registry import check_precision
from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.errors import PfdiffError

# diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
pytestmark = [
    pytest.mark.own,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # of the largest element; 0.017 was measured in bf16
PFDIFF = "pfdiff:k=2,l=1"


# network, how PyTorch runs it in fp32, solver, our precision; neighbours share a network.
ROWS = [
    *(("fashion", how, solver, "fp32") for how in ("eager", "compiled") for solver in (*DIFFUSERS, PFDIFF)),
    ("fashion", "channels_last", "ddim", "fp32"),
    *(("cifar", "eager", solver, "fp32") for solver in DIFFUSERS),
    ("cifar", "eager", "ddim", "bf16"),
    ("cifar", "channels_last", "ddim", "fp32"),
]


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """On a GPU PyTorch rounds float32 convolutions to TF32 unless told otherwise; ours does not."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield


@lru_cache(maxsize=1)  # neighbouring rows share one network: it is compiled once
def torch_network(network: str, how: str) -> Any:
    """The module as it is, with its weights in NHWC, or through torch.compile."""
    module = module_of(network, device_of()).requires_grad_(False)
    if how == "channels_last":
        module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return torch.compile(module, dynamic=False) if how == "compiled" else module


def why_not(how: str, precision: str) -> str:
    """Why a row cannot be measured here, in one line; empty when it can."""
    if how == "compiled":
        return why_not_compiled()
    if precision == "fp32":
        return ""
    if device_of() != "cpu":
        return f"ours in {precision} is measured on the CPU"
    try:
        check_precision("openvino", precision)
    except PfdiffError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("network", "how", "solver", "precision"), ROWS, ids=["-".join(row).removesuffix("-fp32") for row in ROWS]
)
def test_pytorch(measure: Measure, engines: Engines, network: str, how: str, solver: str, precision: str) -> None:
    if reason := why_not(how, precision):
        pytest.skip(reason)
    module = torch_network(network, how)
    nfe, contract = NFE[network][-1], engines.contract(network)
    if solver == PFDIFF:
        program = compile(solver, contract.schedule, nfe, prediction=contract.prediction, grid="uniform", basis="eps")
        peer, loop = f"plain loop, torch {torch.__version__}", plain_pfdiff
    else:
        if not has_diffusers():
            pytest.skip("diffusers is not installed")
        program = diffusers_program(solver, contract.schedule, nfe, contract.prediction)
        peer, loop = f"diffusers {version('diffusers')}, torch {torch.__version__}", diffusers_loop
    with engines.with_program(network, program, backend_of(network), precision) as ours:
        given = list(feed(ours, nfe, 1).values())
        conditions = [torch.from_numpy(one).to(ours.device) for one in given[2:]]
        z = torch.from_numpy(given[0]).to(ours.device)
        draw = loop(module, program, torch.float32, conditions)
        compare(measure, ours, program, lambda: draw(z), z, network, f"{peer}, {how}")


@pytest.mark.parametrize("network", OWN)
def test_onnxruntime_and_numpy(measure: Measure, engines: Engines, network: str) -> None:
    if device_of() != "cpu":
        pytest.skip("NumPy updates are measured on the CPU")
    import onnxruntime

    contract = engines.contract(network)
    program = compile("ddim", contract.schedule, NFE[network][-1], prediction=contract.prediction, grid="trailing")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engines.threads or 0
    path = str(engines.path(network, "fp32") / "network.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with engines.with_program(network, program, "onnxruntime") as ours:
        arrays = feed(ours, program.nfe, 1)
        z = arrays[contract.input]
        draw = numpy_ddim(session, program, list(arrays), list(arrays.values())[2:])
        peer = f"NumPy loop, onnxruntime {onnxruntime.__version__}"
        compare(measure, ours, program, lambda: draw(z), torch.from_numpy(z), network, peer)


def compare(
    measure: Measure,
    ours: Engine,
    program: Program,
    theirs: Callable[[], Any],
    z: torch.Tensor,
    network: str,
    peer: str,
) -> None:
    """Check that both draw the same sample from the noise z, then time them in turns."""
    error = same_sample(peer, theirs(), ours.sample(noise=z), TOLERANCE[ours.precision])
    case = Case(network, "fp32", ours.backend, program.nfe, 1)
    times, beside = measure(theirs, {"pfdiff": lambda: ours.sample(noise=z)}, pause_s=PAUSE_S)
    measure.record(
        times,
        case,
        ours,
        backend=None,
        threads=torch.get_num_threads(),
        peer=peer,
        solver=program.solver,
        error=error,
        ours={"backend": ours.description, "p50_ms": float(np.median(beside["pfdiff"]))},
        ratios={f"pfdiff on {ours.backend} {ours.precision} / this": blocks(beside["pfdiff"], times)},
    )
