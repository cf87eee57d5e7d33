"""A network small enough to write by hand, as ONNX graph, as function and as module, and engines of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper, save_model

from pfdiff.engine.artifact import Artifact, records_of, write_manifest
from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import Contract

SHAPE = (2, 3, 5)
CONDITIONS = (
    Condition("label", "int64", default=0, low=0, high=9, labels=("zero", "one", "two")),
    Condition("shift", "float32", (3, 1), default=0.0),
)
CONTRACT = Contract(name="small", shape=SHAPE, schedule="linear:1000", prediction="eps", conditions=CONDITIONS)
SOLVER = {"solver": "pfdiff:k=2,l=1", "grid": "logsnr"}


def small(x: Any, t: Any, label: Any = 0, shift: Any = 0.0) -> Any:
    """out = tanh(0.7 x) + 0.001 t + 0.05 label + shift, for torch tensors; t and label [B] or numbers."""
    t, label, shift = (torch.as_tensor(one, dtype=x.dtype, device=x.device) for one in (t, label, shift))
    t, label = (one.reshape(-1, 1, 1, 1) for one in (t, label))
    return torch.tanh(0.7 * x) + 0.001 * t + 0.05 * label + (shift if shift.ndim < 3 else shift[:, None])


class Small(torch.nn.Module):
    """`small` with a parameter, so that it can be exported, trained and told apart."""

    def __init__(self, weight: float = 0.7) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        late = 0.001 * t[:, None, None, None] + 0.05 * label.to(x.dtype)[:, None, None, None]
        return torch.tanh(self.weight * x) + late + shift[:, None]


def write_onnx(
    path: Path, *, batch: int | str = "batch", weight: float = 0.7, time: str = "float32", external: bool = False
) -> None:
    """`small` as an ONNX file. `time` is float32 [batch], int64 [batch], or scalar for a float32 scalar."""

    def constant(name: str, value: Any) -> Any:
        return numpy_helper.from_array(np.asarray(value), name)

    times = TensorProto.INT64 if time == "int64" else TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *SHAPE]),
        helper.make_tensor_value_info("t", times, [] if time == "scalar" else [batch]),
        helper.make_tensor_value_info("label", TensorProto.INT64, [batch]),
        helper.make_tensor_value_info("shift", TensorProto.FLOAT, [batch, 3, 1]),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "weight"], ["wx"]),
        helper.make_node("Tanh", ["wx"], ["a"]),
        helper.make_node("Cast", ["t"], ["t_float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["t_float", "column"], ["t_column"]),
        helper.make_node("Mul", ["t_column", "t_weight"], ["b"]),
        helper.make_node("Cast", ["label"], ["label_float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["label_float", "column"], ["label_column"]),
        helper.make_node("Mul", ["label_column", "label_weight"], ["c"]),
        helper.make_node("Unsqueeze", ["shift", "one"], ["d"]),
        helper.make_node("Sum", ["a", "b", "c", "d"], ["out"]),
    ]
    constants = [
        constant("weight", np.full(SHAPE, weight, np.float32)),
        constant("t_weight", np.float32(0.001)),
        constant("label_weight", np.float32(0.05)),
        constant("column", np.array([-1, 1, 1, 1])),
        constant("one", np.array([1])),
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, *SHAPE])
    graph = helper.make_graph(nodes, "small", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options: dict[str, Any] = {"location": "network.onnx.data", "size_threshold": 100} if external else {}
    save_model(model, path, save_as_external_data=external, **options)


def program(nfe: int, contract: Contract = CONTRACT, **settings: Any) -> Program:
    return compile(**{**SOLVER, **settings}, schedule=contract.schedule, nfe=nfe, prediction=contract.prediction)


def write_engine(
    folder: Path,
    *,
    contract: Contract = CONTRACT,
    nfe: tuple[int, ...] = (4, 6),
    batch: tuple[int, ...] = (1, 8),
    external: bool = False,
    **settings: Any,
) -> Artifact:
    """An engine directory of `small`, written without the exporter; settings: of its programs."""
    folder.mkdir()
    time = "scalar" if contract.time_rank == 0 else contract.time_dtype
    write_onnx(folder / "network.onnx", batch=contract.fixed_batch or "batch", time=time, external=external)
    programs = {count: program(count, contract, **settings) for count in nfe}
    artifact = Artifact(folder, contract, batch, "fp32", programs, {"network": "small"}, records_of(folder))
    write_manifest(artifact)
    return artifact
