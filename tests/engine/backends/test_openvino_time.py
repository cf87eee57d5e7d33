"""On OpenVINO the time of a bf16 network keeps its digits, as network.onnx says and PyTorch computes."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfdiff.engine.backends.abstract import Buffers, NetworkFiles
from pfdiff.engine.backends.casting import cast_copy
from pfdiff.engine.backends.registry import open_backend
from pfdiff.engine.contract.contract import Contract
from pfdiff.export.to_onnx import export_module

openvino = pytest.importorskip("openvino")
openvino_cpu = pytest.importorskip("pfdiff.engine.backends.openvino_cpu")
times = pytest.importorskip("pfdiff.engine.backends.openvino_time")
affine = pytest.importorskip("pfdiff.engine.backends.openvino_affine")

SHAPE = (2, 4, 4)
MARK = "DisablePrecisionConversion_0"


@final
class Embedded(nn.Module):
    """The time as sine and cosine of eight angles up to itself, and as a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(16, 8)
        self.table = nn.Embedding(1000, 8)
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t.float()[:, None] * torch.logspace(0, -3, 8)
        waves = torch.cat((angles.cos(), angles.sin()), 1).to(x.dtype)
        rows = self.table(t.long())
        return self.last(torch.tanh(self.first(x) + (self.embed(waves) + rows)[:, :, None, None]))


@pytest.fixture(scope="module", params=["float32", "int64"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NetworkFiles:
    contract = Contract("embedded", SHAPE, "linear:1000", "v", time_dtype=request.param, precision="bf16")
    path = tmp_path_factory.mktemp("time") / "network.onnx"
    export_module(cast_copy(Embedded(), torch.bfloat16).eval(), contract, path)
    return NetworkFiles(path, contract)


def time_dtype(files: NetworkFiles) -> str:
    assert isinstance(files.contract, Contract)
    return files.contract.time_dtype


def static(files: NetworkFiles) -> Any:
    model = openvino.Core().read_model(str(files.onnx))
    model.reshape({"x": [2, *SHAPE], "t": [2]})
    return model


def test_the_part_of_the_time_alone_is_marked(files: NetworkFiles) -> None:
    model = static(files)
    times.time_in_float32(model, "t")
    model.validate_nodes_and_infer_types()
    kinds = {node.get_type_name(): MARK in node.get_rt_info() for node in model.get_ordered_ops()}
    assert {name: kinds[name] for name in ("Cos", "Sin", "Convolution", "Tanh", "MatMul")} == {
        "Cos": True,
        "Sin": True,
        "Convolution": False,
        "Tanh": False,
        "MatMul": False,
    }
    (product,) = (one.input_value(0).get_node() for one in model.get_ordered_ops() if one.get_type_name() == "Cos")
    assert product.get_type_name() == "Multiply"
    assert MARK in product.get_rt_info()
    shaped = [one.get_node() for one in (product.input_value(0), product.input_value(1))]
    assert all(MARK in one.get_rt_info() for one in shaped if one.get_type_name() not in ("Constant", "Parameter"))


def test_values_are_those_of_the_network(files: NetworkFiles) -> None:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    found: list[np.ndarray] = []
    x, t = torch.randn(2, *SHAPE, generator=torch.manual_seed(1)), torch.tensor([999.0, 641.0])
    for changed in (False, True):
        model = static(files)
        if changed:
            times.time_in_float32(model, "t")
        ends = openvino.preprocess.PrePostProcessor(model)
        for end in (ends.input("x"), ends.output("out")):
            end.tensor().set_element_type(openvino.Type.f32)
        compiled = openvino.Core().compile_model(ends.build(), "CPU", options)
        dtype = np.int64 if time_dtype(files) == "int64" else np.float32
        found.append(compiled({"x": x.numpy(), "t": t.numpy().astype(dtype)})[0])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [999.0, 641.0, 640.37, 3.0])
def test_the_error_is_at_most_twice_pytorchs(files: NetworkFiles, t: float) -> None:
    if "bf16" not in openvino_cpu.cpu_precisions():
        pytest.skip("this CPU has no bf16 arithmetic")
    if time_dtype(files) == "int64" and t != int(t):
        pytest.skip("a time between two integers is none of an int64 network")
    backend = open_backend("openvino", files, 1)
    buffers = Buffers.of(files.contract, 2, backend.dtype)
    buffers.x.copy_(torch.randn(2, *SHAPE, generator=torch.manual_seed(1)))
    assert buffers.t is not None
    buffers.t.fill_(t)
    (evaluate,) = backend.bind([buffers])
    time = torch.full((2,), t, dtype=torch.float64)
    with torch.no_grad():
        x = buffers.x.float()
        exact = Embedded().eval()(x, time.float()).double()
        plain = cast_copy(Embedded(), torch.bfloat16).eval()(x.bfloat16(), time.float()).double()
    error, usual = ((one - exact).norm() / exact.norm() for one in (evaluate().double(), plain))
    assert 0 < error <= 2 * usual


@final
class Chained(nn.Module):
    """Angles by several products and sums, which OpenVINO joins into nodes of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(16, 8)
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = ((t.float()[:, None] / 1000 + 0.5) * torch.linspace(1, 40, 8) + 0.25) * 2 * torch.pi
        waves = torch.cat((angles.cos(), angles.sin()), 1).to(x.dtype)
        return self.last(torch.tanh(self.first(x) + self.embed(waves)[:, :, None, None]))


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> NetworkFiles:
    contract = Contract("chained", SHAPE, "linear:1000", "v", precision="bf16")
    path = tmp_path_factory.mktemp("chained") / "network.onnx"
    export_module(cast_copy(Chained(), torch.bfloat16).eval(), contract, path)
    return NetworkFiles(path, contract)


def test_what_openvino_joins_is_joined_before_it_is_marked(chained: NetworkFiles) -> None:
    """A node that a library makes of two others has no mark, and would be rounded."""
    model = static(chained)
    times.time_in_float32(model, "t")
    (angles,) = (one.input_value(0).get_node() for one in model.get_ordered_ops() if one.get_type_name() == "Cos")
    chain: list[str] = []
    while angles.get_type_name() in ("Multiply", "Add", "Divide", "Reshape"):
        assert MARK in angles.get_rt_info()
        chain.append(angles.get_type_name())
        angles = angles.input_value(0).get_node()
    assert angles.get_type_name() == "Parameter"
    assert sorted(one for one in chain if one != "Reshape") == ["Add", "Multiply"]


@pytest.mark.parametrize("t", [999.0, 640.37])
def test_angles_of_several_products_are_as_pytorch_has_them(chained: NetworkFiles, t: float) -> None:
    if "bf16" not in openvino_cpu.cpu_precisions():
        pytest.skip("this CPU has no bf16 arithmetic")
    backend = open_backend("openvino", chained, 1)
    buffers = Buffers.of(chained.contract, 2, backend.dtype)
    buffers.x.copy_(torch.randn(2, *SHAPE, generator=torch.manual_seed(1)))
    assert buffers.t is not None
    buffers.t.fill_(t)
    (evaluate,) = backend.bind([buffers])
    with torch.no_grad():
        x, time = buffers.x.float(), torch.full((2,), t)
        exact = Chained().eval()(x, time).double()
        plain = cast_copy(Chained(), torch.bfloat16).eval()(x.bfloat16(), time).double()
    error, usual = ((one - exact).norm() / exact.norm() for one in (evaluate().double(), plain))
    assert 0 < error <= 2 * usual


@pytest.mark.parametrize("size", [1, 3])
def test_zeros_along_an_axis_keep_its_size(size: int) -> None:
    """t 2 + [0, 0, 0] is of three elements, however little the sum adds."""
    opset = openvino.opset13
    start = opset.parameter([2, 1], np.float32, name="t")
    doubled = opset.multiply(start, opset.constant(np.float32(2)))
    summed = opset.add(doubled, opset.constant(np.zeros(size, np.float32)))
    part = openvino.Model([opset.result(opset.sin(summed))], [start], "time")
    affine.join_affine(part)
    part.validate_nodes_and_infer_types()
    assert list(part.output(0).shape) == [2, size]
    t = np.array([[0.25], [1.5]], np.float32)
    (found,) = openvino.Core().compile_model(part, "CPU")({0: t}).values()
    np.testing.assert_allclose(found, np.sin(2 * t) * np.ones((1, size)), rtol=1e-6)
