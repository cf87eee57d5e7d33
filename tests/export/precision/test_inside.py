"""Q/DQ files of others: counted, refused where scales make no sense, run by every backend here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.errors import InputError
from pfdiff.engine.runtime.noise import noise
from pfdiff.export.build import build
from pfdiff.export.network import Network
from pfdiff.export.precision.inside import check_scales, inside

from ...small.precision import SAMPLER, SHAPE, WORDS, Small, small_file

# Without VNNI, which the tests may hide: such files have weights of 8 bits.
pytestmark = pytest.mark.filterwarnings("ignore:engine .* has int8 weights of 8 bits:RuntimeWarning")
DATA = Path(__file__).parents[2] / "data"


class Batches(CalibrationDataReader):
    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._left: Iterator[dict[str, Any]] = iter(
            {"x": generator.standard_normal((2, *SHAPE), np.float32), "t": np.full(2, t, np.float32)}
            for t in (999.0, 500.0, 20.0)
        )

    def get_next(self) -> dict[str, Any]:  # type: ignore[override]
        return next(self._left, None)  # type: ignore[return-value]


def reference(program: Program) -> np.ndarray:
    """Samples of the seeds 0 to 3 in float64."""
    exact = Small().double()
    start = torch.from_numpy(noise(range(4), SHAPE).numpy()).double()
    with torch.no_grad():
        return program.evaluate(lambda x, t: exact(x, torch.full((len(x),), float(t))), start).numpy()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime's own quantisation of the small network, one convolution left out."""
    folder = tmp_path_factory.mktemp("inside")
    plain, path = small_file(folder), folder / "quantised.onnx"
    left_out = [node.name for node in onnx.load(plain).graph.node if node.op_type == "Conv"][-1]
    quantize_static(
        plain,
        path,
        Batches(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=[left_out],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def test_the_layers_inside_are_counted(file: Path) -> None:
    assert inside(onnx.load(file)) == {"int8 inside": "3 of 4 convolutions, 0 of 4 linear layers"}
    assert inside(onnx.load(file.parent / "small.onnx")) == {}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_of_onnxruntimes_samples_as_it_says(file: Path, tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    with build(Network(file, **WORDS), 4, **SAMPLER, out=tmp_path / "e", backend=backend) as engine:
        assert engine.precision == "fp32"  # of x and out
        found = engine.sample(seeds=range(4)).numpy()
    assert read_artifact(tmp_path / "e").provenance["int8 inside"] == "3 of 4 convolutions, 0 of 4 linear layers"
    wanted = reference(read_artifact(tmp_path / "e").program())
    error = np.sqrt(np.mean((found - wanted) ** 2)) / np.sqrt(np.mean(wanted**2))
    assert 1e-4 < error < 0.05  # quantised, and hardly more


def test_info_names_what_is_inside(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pfdiff.cli.info import print_info

    build(Network(file, **WORDS), 4, **SAMPLER, out=tmp_path / "e", backend="onnxruntime").close()
    print_info(tmp_path / "e", nfe=None, as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "int8 inside 3 of 4 convolutions, 0 of 4 linear layers" in printed


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_a_scale_that_makes_no_sense_is_named(file: Path, tmp_path: Path, value: float) -> None:
    model = onnx.load(file)
    node = next(one for one in model.graph.node if one.op_type == "QuantizeLinear")
    scale = next(one for one in model.graph.initializer if one.name == node.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), scale.name))
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(
        InputError, match=rf"the scale '{node.input[1]}' of \w+Linear .* holds .*finite numbers above 0"
    ):
        Network(tmp_path / "broken.onnx", **WORDS)


def test_weights_behind_a_transposition_are_counted() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> net (float[b,4] x) => (float[b,3] out)
    <int8[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float scale = {0.1}, uint8 zero = {3}> {
    q = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(q, scale, zero)
    v = DequantizeLinear(w, scale)  turned = Transpose<perm = [1, 0]>(v)  out = MatMul(d, turned) }"""
    model = onnx.parser.parse_model(text)
    assert inside(model) == {"int8 inside": "1 of 1 linear layer"}
    check_scales(model, "net.onnx")


def test_a_plan_of_a_quantised_file_is_built_without_a_gpu(tmp_path: Path) -> None:
    """Symmetric int8, as TensorRT takes it, written by hand."""
    pytest.importorskip("tensorrt_rtx")
    text = """<ir_version: 10, opset_import: ["" : 21]>
    net (float[b,2,4,4] x, float[b] t) => (float[b,2,4,4] out)
    <int8[2,2,1,1] w = {100,-20,33,90}, float[2] scales = {0.01,0.02}, int8[2] zeros = {0,0}, float s = {0.03},
    int8 z = {0}, int64[4] shape = {-1,1,1,1}> {
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  v = DequantizeLinear<axis = 0>(w, scales, zeros)
    y = Conv(d, v)  c = Cos(t)  column = Reshape(c, shape)  out = Mul(y, column) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    network = Network(tmp_path / "net.onnx", schedule="linear:1000", prediction="eps")
    build(network, 2, "ddim", grid="trailing", out=tmp_path / "e", target="sm89", backend="onnxruntime").close()
    assert len(list((tmp_path / "e" / "plans").glob("*-sm89-*.plan"))) == 1
    assert read_artifact(tmp_path / "e").provenance["int8 inside"] == "1 of 1 convolution"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (
            "int8",
            {
                "int8 inside": "2 of 4 convolutions, 2 of 4 linear layers",
                "int8 weights inside": "2 of 4 convolutions, 0 of 4 linear layers",
            },
        ),
        ("fp8", {"fp8 inside": "0 of 4 convolutions, 2 of 4 linear layers"}),
    ],
)
def test_files_of_modelopts_sample_and_become_plans(tmp_path: Path, name: str, counts: dict[str, str]) -> None:
    """The small network as ModelOpt 0.47 quantised it (`modelopt.onnx.quantization.quantize`, method max)."""
    path = DATA / f"modelopt_{name}.onnx"
    assert inside(onnx.load(path)) == counts
    targets = "sm89,sm120" if importlib.util.find_spec("tensorrt_rtx") else ()
    given: dict[str, Any] = {**SAMPLER, "backend": "onnxruntime", "out": tmp_path / "e", "target": targets}
    with build(Network(path, **WORDS), 2, **given) as engine:
        found = engine.sample(seeds=range(4)).numpy()
        program = engine.programs[2]
    assert len(list((tmp_path / "e").glob("plans/*.plan"))) == (2 if targets else 0)
    error = np.sqrt(np.mean((found - reference(program)) ** 2)) / np.sqrt(np.mean(reference(program) ** 2))
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("operators", {"int8 inside": "4 of 4 convolutions, 4 of 4 linear layers"}),
        ("dynamic", {"int8 inside": "4 of 4 convolutions, 4 of 4 linear layers"}),
        ("wide", {"int16 and int8 inside": "4 of 4 convolutions, 4 of 4 linear layers"}),
        ("blocks", {"int4 weights inside": "0 of 4 convolutions, 2 of 4 linear layers"}),
    ],
)
def test_other_kinds_of_onnxruntimes_are_named_and_sample_as_onnxruntime_does(
    tmp_path: Path, name: str, counts: dict[str, str]
) -> None:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    plain, path = small_file(tmp_path), tmp_path / "quantised.onnx"
    if name == "dynamic":
        quantize_dynamic(plain, path, weight_type=QuantType.QInt8)
    elif name == "blocks":
        model = onnx.load(plain)
        of_blocks = MatMulNBitsQuantizer(model, block_size=16, is_symmetric=True, quant_format=QuantFormat.QDQ)
        of_blocks.process()
        of_blocks.model.save_model_to_file(str(path))  # pyright: ignore[reportAttributeAccessIssue]
    else:
        form = QuantFormat.QOperator if name == "operators" else QuantFormat.QDQ
        activations = QuantType.QInt16 if name == "wide" else QuantType.QUInt8
        given: dict[str, Any] = {"activation_type": activations, "weight_type": QuantType.QInt8}
        quantize_static(plain, path, Batches(), quant_format=form, **given)
    assert inside(onnx.load(path)) == counts
    with build(Network(path, **WORDS), 2, **SAMPLER, out=tmp_path / "e", backend="onnxruntime") as engine:
        found, program = engine.sample(seeds=range(4)).numpy(), engine.programs[2]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = lambda x, t: {"x": x.astype(np.float32), "t": np.full(len(x), t, np.float32)}  # noqa: E731  # one line
    wanted = program.evaluate(lambda x, t: session.run(None, feed(x, t))[0], noise(range(4), SHAPE).numpy())
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.02 * np.sqrt(np.mean(wanted**2))  # steps of rounded inputs


def test_scales_of_weights_may_be_negative_and_no_others() -> None:
    """ONNX Runtime's blocks of 4 bits have negative scales, so that the eighth negative number is used too."""
    text = """<ir_version: 10, opset_import: ["" : 21]> net (float[b,2] x) => (float[b,2] out)
    <int8[2,2] w = {{1,2,3,4}}, float scale = {{{}}}, float other = {{-0.5}}, uint8 zero = {{3}}> {{
    q = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(q, scale, zero)
    v = DequantizeLinear(w, other)  out = MatMul(d, v) }}"""
    check_scales(onnx.parser.parse_model(text.format("0.1")), "net.onnx")
    with pytest.raises(InputError, match=r"the scale 'scale' of QuantizeLinear .* holds -0\.1"):
        check_scales(onnx.parser.parse_model(text.format("-0.1")), "net.onnx")
    operator = """<ir_version: 10, opset_import: ["" : 21]> net (uint8[b,2] x) => (uint8[b,2] out)
    <float s = {0.1}, uint8 z = {3}, uint8[2,2] w = {1,2,3,4}, float none = {0.0}> {
    out = QLinearMatMul(x, s, z, w, none, z, s, z) }"""
    with pytest.raises(InputError, match="the scale 'none' of QLinearMatMul 'out' holds 0"):
        check_scales(onnx.parser.parse_model(operator), "net.onnx")
