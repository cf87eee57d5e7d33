"""The bare network, beside the same ONNX file in its runtime as anybody would call it, and a matrix product.

The first ratio sees what this project does around a runtime; the second also sees a worse export and a worse runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pfdiff.bench.cases import Case, Engines, feed, network_bytes
from pfdiff.bench.measure import PAUSE_S, Measure, blocks, repeated
from pfdiff.engine.api import Engine

WIDTH = 512  # of the matrix product: 0.27 GFLOP, in the caches of one core


def select(cases: Sequence[Case]) -> list[Case]:
    """One case for each network, precision, backend and batch."""
    return list({(one.engine, one.precision, one.backend, one.batch): one for one in cases}.values())


def test_network(measure: Measure, engines: Engines, case: Case) -> None:
    engine = engines.open(case)
    network = engine.parts(case.nfe, case.batch).network
    matrix = torch.rand(WIDTH, WIDTH, device=engine.device)
    products, count = repeated(lambda: torch.mm(matrix, matrix), seconds=5e-3)
    beside, counts = {"a matrix product": products}, {"a matrix product": count}
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

    session = onnxruntime.InferenceSession(str(engine.path / "network.onnx"), providers=["CPUExecutionProvider"])
    arrays = feed(engine, case.nfe, case.batch)
    return lambda: [session.run(None, arrays) for _ in range(case.nfe)]


def plain_openvino(engine: Engine, case: Case) -> Callable[[], object]:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(engine.path / "network.onnx"), "CPU", hints)
    arrays = feed(engine, case.nfe, case.batch)
    return lambda: [compiled(arrays) for _ in range(case.nfe)]


PLAIN = {("onnxruntime", "fp32", "cpu"): plain_onnxruntime, ("openvino", "fp32", "cpu"): plain_openvino}
