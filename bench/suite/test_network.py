"""The bare network, beside the same ONNX file in its runtime as anybody would call it, and matrix products.

The first ratio sees what this project does around a runtime; the second also sees a worse export and a worse runtime.
On a CUDA device the L2 cache is not flushed: N evaluations follow one another as in a sample, where between two of them
only an update's few states pass, so what of the weights stays in the cache here stays there too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pfdiff.bench.measuring.cases import Case, Engines, feed, network_bytes
from pfdiff.bench.measuring.measure import PAUSE_S, Measure, repeated
from pfdiff.bench.measuring.ratios import blocks
from pfdiff.engine.api import Engine

COUNT, WIDTH = 64, 60  # of the matrices: products too small for OpenBLAS to split over threads


def select(cases: Sequence[Case]) -> list[Case]:
    """One case for each network, precision, backend and batch."""
    return list({(one.engine, one.precision, one.backend, one.batch): one for one in cases}.values())


def test_network(measure: Measure, engines: Engines, case: Case) -> None:
    engine = engines.open(case)
    network = engine.parts(case.nfe, case.batch).network
    matrices = torch.rand(COUNT, WIDTH, WIDTH, device=engine.device)
    arrays = matrices.numpy() if engine.device == "cpu" else None  # NumPy multiplies them one by one, in one thread
    products, count = repeated(lambda: matrices @ matrices if arrays is None else arrays @ arrays, seconds=5e-3)
    beside, counts = {"matrix products": products}, {"matrix products": count}
    plain = PLAIN.get((case.backend, case.precision, engine.device))
    if plain:
        beside[f"plain {case.backend}"], counts[f"plain {case.backend}"] = plain(engine, case), case.nfe
    times, others = measure(network, beside, pause_s=PAUSE_S)
    measure.record(
        times / case.nfe,
        case,
        engine,
        bytes=network_bytes(engine, case.batch),
        ratios={f"network / {name}": blocks(times / case.nfe, others[name] / counts[name]) for name in beside},
    )


# The same file and as many evaluations, arrays in and arrays out.
def plain_onnxruntime(engine: Engine, case: Case) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine.threads or 0
    path = str(engine.path / "network.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    arrays = feed(engine, case.nfe, case.batch)
    return lambda: [session.run(None, arrays) for _ in range(case.nfe)]


def plain_openvino(engine: Engine, case: Case) -> Callable[[], object]:
    import openvino

    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if engine.threads:
        hints["INFERENCE_NUM_THREADS"] = engine.threads
    compiled = openvino.Core().compile_model(str(engine.path / "network.onnx"), "CPU", hints)
    arrays = feed(engine, case.nfe, case.batch)
    return lambda: [compiled(arrays) for _ in range(case.nfe)]


PLAIN = {("onnxruntime", "fp32", "cpu"): plain_onnxruntime, ("openvino", "fp32", "cpu"): plain_openvino}
