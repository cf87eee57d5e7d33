"""Any float32 ONNX file in fp16 or bf16, against the module in float64 and the module cast by PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.errors import InputError
from pfdiff.export.check import TrialInputs
from pfdiff.export.network import Network
from pfdiff.export.precision.half import convert, rounded
from pfdiff.export.precision.observe import GraphRun

from ...small.precision import SHAPE, WORDS, Small, small_file

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
STORED = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_file(tmp_path_factory.mktemp("half"))


def trials(count: int = 4) -> list[TrialInputs]:
    generator = np.random.default_rng(3)
    times = [999.0, 640.37, 211.0, 3.5][:count]
    return [
        TrialInputs(generator.standard_normal((2, *SHAPE), np.float32), np.full(2, t, np.float32), ()) for t in times
    ]


def relative(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    difference = np.concatenate([(a - b).ravel() for a, b in zip(found, wanted, strict=True)])
    return float(np.linalg.norm(difference) / np.linalg.norm(np.concatenate([one.ravel() for one in wanted])))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_error_of_an_evaluation_is_at_most_twice_pytorchs(file: Path, tmp_path: Path, precision: str) -> None:
    contract = Network(file, **WORDS).write(tmp_path, precision)
    assert contract.precision == precision
    model = onnx.load(tmp_path / "network.onnx")
    run = GraphRun(rounded(model) if precision == "bf16" else model, contract.inputs)
    exact, cast = Small().double(), Small().to(DTYPES[precision])
    with torch.no_grad():
        wanted = [exact(torch.from_numpy(one.x).double(), torch.from_numpy(one.t)).numpy() for one in trials()]
        plain = [
            cast(torch.from_numpy(one.x).to(DTYPES[precision]), torch.from_numpy(one.t)).double().numpy()
            for one in trials()
        ]
    found = [run(one)[contract.output].astype(np.float64) for one in trials()]
    assert 0 < relative(found, wanted) <= 2 * relative(plain, wanted)
    held = {one.data_type for one in model.graph.initializer if len(one.dims) == 4}
    assert held == {STORED[precision]}  # every convolution's weights


def test_the_time_is_never_rounded(file: Path, tmp_path: Path) -> None:
    contract = Network(file, **WORDS).write(tmp_path, "fp16")
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "network.onnx"))
    makers = {name: node for node in model.graph.node for name in node.output}
    types = {one.name: one.type.tensor_type.elem_type for one in (*model.graph.value_info, *model.graph.input)}
    node = next(one for one in model.graph.node if one.op_type == "Cos")
    seen = 0
    while node is not None:
        assert types[node.input[0]] == TensorProto.FLOAT, node.name
        assert not (node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16)
        seen += 1
        node = makers.get(node.input[0])
    assert seen > 1
    assert types[contract.time] == TensorProto.FLOAT


def contract_of(shape: tuple[int, ...]) -> Contract:
    return Contract("text", shape, "linear:1000", "eps")


def graph(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)


def halved(text: str, x: np.ndarray) -> tuple[onnx.ModelProto, np.ndarray, frozenset[str]]:
    """The fp16 graph, its output, the nodes kept float32."""
    contract = contract_of(x.shape[1:])
    case = TrialInputs(x.astype(np.float32), np.full(len(x), 7, np.float32), ())
    half = convert(graph(text), contract, "fp16", [case])
    return half.model, GraphRun(half.model, contract.inputs)(case)["out"].astype(np.float64), half.kept


HEAD = "net (float[b,4] x, float[b] t) => (float[b,4] out)\n"


def test_values_beyond_float16_stay_float32() -> None:
    text = HEAD + "<float[1] big = {1e6}> { y = Mul(x, big)\n z = Div(y, big)\n out = Identity(z) }"
    x = np.array([[1.0, -2.0, 0.25, 3.0]])
    _, out, kept = halved(text, x)
    np.testing.assert_allclose(out, x, rtol=1e-3)
    assert len(kept) == 2


def test_the_logits_of_a_softmax_that_overflow_stay_float32() -> None:
    text = HEAD + "<float[1] big = {40000}> { y = Mul(x, big)\n z = Mul(y, x)\n out = Softmax<axis = 1>(z) }"
    x = np.array([[1.0, 2.0, 1.5, 0.5], [0.1, 0.1001, 0.05, 0.0]])
    _, out, _ = halved(text, x)
    logits = 40000.0 * np.float32(x).astype(np.float16).astype(np.float64) ** 2
    weights = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    np.testing.assert_allclose(out, weights / weights.sum(1, keepdims=True), atol=2e-3)


def test_statistics_of_a_normalisation_written_out_stay_float32() -> None:
    text = HEAD + (
        "<int64[1] axis = {1}, float[1] two = {2}, float[1] epsilon = {1e-6}> {\n"
        "mean = ReduceMean(x, axis)\n away = Sub(x, mean)\n square = Pow(away, two)\n"
        "variance = ReduceMean(square, axis)\n safe = Add(variance, epsilon)\n"
        "deviation = Sqrt(safe)\n out = Div(away, deviation) }"
    )
    x = np.array([[1.0, 1.002, 0.998, 1.001], [300.0, -280.0, 290.0, -310.0]])
    _, out, kept = halved(text, x)
    x16 = x.astype(np.float16).astype(np.float64)
    away = x16 - x16.mean(1, keepdims=True)
    wanted = away / np.sqrt((away**2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, wanted, rtol=2e-2, atol=2e-2)
    assert len(kept) >= 5


def test_a_constant_that_both_sides_read_is_rounded_on_one_only() -> None:
    text = HEAD + (
        "<float[1] third = {0.33333334}, int64[1] axis = {1}> { a = Mul(t, third)\n c = Cos(a)\n"
        "column = Unsqueeze(c, axis)\n y = Mul(x, third)\n out = Mul(y, column) }"
    )
    model, _, _ = halved(text, np.ones((1, 4)))
    stored = sorted(one.data_type for one in model.graph.initializer if one.name.startswith("third"))
    assert stored == [TensorProto.FLOAT, TensorProto.FLOAT16]


def test_graphs_inside_read_float32_of_what_is_around_them() -> None:
    """A branch reads a product, and a constant that others read too."""
    text = HEAD + (
        "<float[4] w = {0.1, 0.7, -0.3, 2.0}, int64 zero = {0}, float half = {500}> {\n"
        "y = Mul(x, w)\n first = Gather(t, zero)\n late = Greater(first, half)\n"
        "z = If (late) <then_branch = th () => (float[b,4] a) { a = Mul(y, w) },"
        " else_branch = el () => (float[b,4] a) { a = Identity(y) }>\n out = Add(z, x) }"
    )
    x = np.array([[1.0, -2.0, 0.25, 3.0]])
    model, out, kept = halved(text, x)
    w = np.array([0.1, 0.7, -0.3, 2.0])
    np.testing.assert_allclose(out, x * w + x, rtol=2e-3)  # t is 7
    case = TrialInputs(x.astype(np.float32), np.full(1, 700, np.float32), ())
    late = GraphRun(model, contract_of((4,)).inputs)(case)["out"]
    np.testing.assert_allclose(late, x * w * w + x, rtol=2e-3)
    assert len(kept) >= 1


def test_a_filled_tensor_has_the_dtype_of_the_graph() -> None:
    text = HEAD + (
        "{ form = Shape(x)\n y = ConstantOfShape<value = float[1] {0.3}>(form)\n z = Mul(x, y)\n out = Add(z, x) }"
    )
    x = np.array([[1.0, -2.0, 0.25, 3.0]])
    case = TrialInputs(x.astype(np.float32), np.full(1, 7, np.float32), ())
    half = convert(graph(text), contract_of((4,)), "bf16", [case])
    (node,) = (one for one in half.model.graph.node if one.op_type == "ConstantOfShape")
    (value,) = (one.t for one in node.attribute if one.name == "value")
    assert value.data_type == TensorProto.BFLOAT16
    out = GraphRun(rounded(half.model), contract_of((4,)).inputs)(case)["out"]
    np.testing.assert_allclose(out, 1.3 * x, rtol=1e-2)


def test_scales_of_a_quantised_file_stay_float32_in_bf16() -> None:
    text = HEAD + (
        "<float scale = {0.05}, int8 zero = {0}> { q = QuantizeLinear(x, scale, zero)\n"
        "y = DequantizeLinear(q, scale, zero)\n z = Mul(y, y)\n out = Add(z, x) }"
    )
    case = TrialInputs(np.array([[1.0, -2.0, 0.25, 3.0]], np.float32), np.full(1, 7, np.float32), ())
    half = convert(graph(text), contract_of((4,)), "bf16", [case])
    stored = {one.name: one.data_type for one in half.model.graph.initializer}
    rounding = [one for one in half.model.graph.node if one.op_type.endswith("izeLinear")]
    assert [stored[one.input[1]] for one in rounding] == [TensorProto.FLOAT] * 2


def test_what_is_not_finite_in_any_precision_is_refused_in_one_line() -> None:
    text = HEAD + "<float[1] zero = {0}> { y = Div(x, zero)\n out = Identity(y) }"
    with pytest.raises(InputError, match=r"not finite in fp16 on the sampler's own inputs.*build with bf16 or fp32"):
        halved(text, np.ones((1, 4)))


def test_half_precision_files_are_not_widened(file: Path, tmp_path: Path) -> None:
    Network(file, **WORDS).write(tmp_path, "fp16")
    with pytest.raises(InputError, match=r"holds fp16 weights and is not converted to int8.*give the float32 file"):
        Network(tmp_path / "network.onnx", **WORDS).write(tmp_path, "int8")
