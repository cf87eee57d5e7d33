"""ONNX files of others as networks: names, times and batches of every kind, weights beside the file; and bad files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.errors import InputError
from pfdiff.export.check import OnnxRun
from pfdiff.export.network import Network

from ...small.modules import SHAPE, WORDS, check_written

DATA = Path(os.environ.get("PFDIFF_DATA", Path(__file__).parents[4] / "shared" / "data"))


def onnx_file(path: Path, text: str, *, opset: int = 17, header: str = "") -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]{header}> net {text}')
    onnx.save(model, path)
    return path


BODY = """{
    shape = Constant <value_ints = [-1, 1, 1, 1]> ()
    f = Cast <to = 1> (time)
    c = Cos (f)
    r = Reshape (c, shape)
    noise = Mul (x_in, r)
}"""


@pytest.mark.parametrize(("sizes", "shape"), [("h,w", " and shape= (--shape 3x64x64)"), ("4,4", "")])
def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, sizes: str, shape: str) -> None:
    path = onnx_file(
        tmp_path / "x.onnx", f"(float[b,2,{sizes}] x_in, float[b] time) => (float[b,2,{sizes}] noise) {BODY}"
    )
    with pytest.raises(InputError) as refusal:
        Network(path)
    assert "schedule= (--schedule linear:1000)" in str(refusal.value)
    assert "prediction= (--prediction eps" in str(refusal.value)
    assert ("shape=" in str(refusal.value)) == bool(shape)
    assert str(refusal.value).endswith(shape)


@pytest.mark.parametrize(
    ("x", "time", "expected"),
    [
        ("float[b,2,4,4]", "float[b]", {"time_rank": 1, "time_dtype": "float32", "fixed_batch": None}),
        ("float[b,2,4,4]", "int64[b]", {"time_dtype": "int64"}),
        ("float[b,2,4,4]", "int32[b]", {"time_dtype": "int64"}),
        ("float[b,2,4,4]", "double[b]", {"time_dtype": "float32"}),
        ("float[b,2,4,4]", "float16[b,1]", {"time_rank": 1, "time_dtype": "float32"}),
        ("float[b,2,4,4]", "int64[b,1,1,1]", {"time_rank": 1}),
        ("float[b,2,4,4]", "float[1]", {"time_rank": 0}),
        ("float[b,2,4,4]", "int32", {"time_rank": 0, "time_dtype": "int64"}),
        ("float[?,2,4,4]", "float[?]", {"fixed_batch": None}),
        ("float[3,2,4,4]", "float[3]", {"fixed_batch": 3}),
        ("float[3,2,4,4]", "float[1]", {"fixed_batch": 3, "time_rank": 0}),
        ("float[1,2,4,4]", "int64[1]", {"fixed_batch": 1, "time_rank": 1}),
        ("float[b,2,h,w]", "float[n]", {"fixed_batch": None, "time_rank": 1}),
    ],
)
@pytest.mark.parametrize("opset", [13, 21])
def test_times_and_batches_of_every_kind(
    tmp_path: Path, x: str, time: str, expected: dict[str, Any], opset: int
) -> None:
    header = f"({x} x_in, {time} time) => ({x} noise) "
    path = onnx_file(tmp_path / "net.onnx", header + BODY, opset=opset)
    network = Network(path, shape=SHAPE, **WORDS)
    contract = network.write(tmp_path)
    assert {name: getattr(contract, name) for name in expected} == expected
    model = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "t", "out"]
    batch = contract.fixed_batch or 3
    given = torch.randn(batch, *SHAPE)
    times = np.arange(batch) * 7.0 if contract.time_rank else np.array(5.0)
    wanted = given.numpy() * np.cos(times).reshape((-1, 1, 1, 1) if contract.time_rank else ())
    np.testing.assert_allclose(network.evaluate(given, times), wanted, atol=1e-5)
    got = OnnxRun(tmp_path / "network.onnx", ("x", "t"), "out")((given.numpy(), times.astype(contract.time_dtype)))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_conditions_keep_their_dtypes_and_get_identifiers(tmp_path: Path) -> None:
    text = """(float[b,2,4,4] out, int64[b] t.in, float[b,2] "class/text", int32[b] label) => (float[b,2,4,4] x) {
        axes = Constant <value_ints = [2, 3]> ()
        t = Unsqueeze ("class/text", axes)
        l = Cast <to = 1> (label)
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        m = Reshape (l, shape)
        f = Cast <to = 1> (t.in)
        s = Reshape (f, shape)
        a = Mul (out, t)
        b = Add (a, m)
        x = Add (b, s)
    }"""
    path = onnx_file(tmp_path / "net.onnx", text.replace('"class/text"', "class_text").replace("t.in", "t_in"))
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["class/text" if name == "class_text" else name for name in node.input]
    model.graph.input[2].name = "class/text"
    onnx.save(model, path)
    label = Condition("label", "int32", default=3, low=0, high=3)
    with pytest.raises(InputError, match="several could be the time: t_in int64"):
        Network(path, **WORDS)
    network = Network(path, time="t_in", conditions={"label": label}, **WORDS)
    assert network.contract.conditions == (Condition("class_text", "float32", (2,)), label)
    check_written(network, tmp_path, class_text=np.ones((3, 2)), label=[0, 1, 2])


def test_names_of_the_contract_inside_the_graph_step_aside(tmp_path: Path) -> None:
    text = """(float[b,2,4,4] t, float[b] x) => (float[b,2,4,4] y)
    <float out = {2.0}> {
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        r = Reshape (x, shape)
        out_inner = Mul (t, out)
        y = Mul (out_inner, r)
    }"""
    network = Network(onnx_file(tmp_path / "net.onnx", text), input="t", time="x", **WORDS)
    check_written(network, tmp_path)


def test_learned_sigma_in_a_file(tmp_path: Path) -> None:
    text = """(float[b,2,4,4] x, float[b] t) => (float[b,4,4,4] y) {
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        r = Reshape (t, shape)
        m = Mul (x, r)
        y = Concat <axis = 1> (m, x)
    }"""
    path = onnx_file(tmp_path / "net.onnx", text)
    with pytest.raises(InputError, match=r"learned_sigma=True \(--learned-sigma\)"):
        Network(path, **WORDS)
    check_written(Network(path, learned_sigma=True, **WORDS), tmp_path)


def test_half_precision_files_stay_as_they_are(tmp_path: Path) -> None:
    text = "(float16[b,2,4,4] x_in, float[b] time) => (float16[b,2,4,4] noise) " + BODY.replace("to = 1", "to = 10")
    network = Network(onnx_file(tmp_path / "net.onnx", text), **WORDS)
    assert network.contract.precision == "fp16"
    with pytest.raises(InputError, match=r"fp16 weights and is not converted to fp32.*build with precision fp16"):
        network.write(tmp_path)
    assert network.write(tmp_path, "fp16").precision == "fp16"


def test_external_weights_are_read_and_hashed(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    text = """(float[b,2,4,4] x, float[b] t) => (float[b,2,4,4] y) <float[1,2,4,4] w> {
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        r = Reshape (t, shape)
        m = Mul (x, w)
        y = Mul (m, r)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> net {text}')
    weights = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    network = Network(file, **WORDS)
    before = network.digest
    folder = tmp_path / "out"
    folder.mkdir()
    check_written(network, folder)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[7] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert Network(file, **WORDS).digest != before
    (tmp_path / "weights.bin").write_bytes(data[:40])
    with pytest.raises(InputError, match=r"weights.bin' is truncated"):
        Network(file, **WORDS)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights.bin' is missing; put it beside"):
        Network(file, **WORDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"\x00\xff not a network" * 40, "not an ONNX file, or truncated"),
        (b"<html>404</html>", "not an ONNX"),
        ("half", "not an ONNX file, or truncated"),
    ],
)
def test_files_that_are_no_networks(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "net.onnx"
    if content == "half":
        onnx_file(path, "(float[b,2,4,4] x_in, float[b] time) => (float[b,2,4,4] noise) " + BODY)
        content = path.read_bytes()[:-150]
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Network(path, **WORDS)
    assert "\n" not in str(caught.value)


NOISY = "(float[b,2,4,4] x_in, float[b] time) => (float[b,2,4,4] noise) "


@pytest.mark.parametrize(
    ("header", "words", "message"),
    [
        (NOISY, {"input": "image"}, "no 'image' for input=; choose among x_in float32"),
        (NOISY, {"time": "sigma"}, "no 'sigma' for time="),
        (NOISY, {"output": "eps"}, "no 'eps' for output="),
        (NOISY, {"shape": (3, 4, 4)}, r"no input takes shape 3, 4, 4: x_in.*correct shape="),
        (NOISY, {"time_dtype": "int64"}, "time_dtype int64, but the file takes 'time float32"),
        (NOISY, {"conditions": {"label": Condition("label", "int64")}}, "no input 'label' for this condition"),
        (NOISY, {"conditions": {"label": torch.zeros(2)}}, "got Tensor, expected a Condition"),
        (NOISY.replace("b,2,4,4] x", "b,2,h,w] x"), {}, r"leaves its size open; give shape= \(--shape"),
        (
            NOISY.replace("float[b,2,4,4] noise", "float[b,10] noise"),
            {},
            r"'noise float32 \[\?, 10\]', expected \[batch, 2, 4, 4\]",
        ),
        (NOISY.replace("float[b] time", "float[b] time, float[b,2,4,4] low_res"), {}, "several could be the input"),
        (NOISY.replace("float[b] time", "float[b] time, float[1,5] text"), {}, "no batch dimension like x"),
        (NOISY.replace("float[b] time", "float[b] time, float[b,n,5] text"), {}, r"--condition text:float32:77x768"),
        (NOISY.replace("float[b] time", "float[4] time"), {}, "another batch"),
        (NOISY.replace("float[b,2,4,4] x_in", "double[b,2,4,4] x_in"), {}, "export it again"),
        (NOISY.replace("float[b] time", "float[b,3] time"), {}, "none looks like the time"),
        (NOISY.replace("float[b] time", "string[b] time"), {}, "no tensor of a known dtype"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, header: str, words: dict[str, Any], message: str) -> None:
    path = onnx_file(tmp_path / "net.onnx", header + BODY)
    with pytest.raises(InputError, match=message) as caught:
        Network(path, **{**WORDS, **words}).write(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", NOISY + BODY, opset=12)
    with pytest.raises(InputError, match="opset 12, expected 13 or newer"):
        Network(path, **WORDS)


def test_a_file_that_lies_about_its_batch(tmp_path: Path) -> None:
    body = BODY.replace("[-1, 1, 1, 1]", "[1, 1, 1, 1]")
    network = Network(onnx_file(tmp_path / "net.onnx", NOISY + body), **WORDS)
    with pytest.raises(InputError, match=r"net.onnx: fails at batch 3"):
        network.write(tmp_path)
    assert not (tmp_path / "network.onnx").exists()


def test_a_foreign_trained_network(tmp_path: Path) -> None:
    path = DATA / "mnist28_ddpm_cosine60_eps.onnx"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder PFDIFF_DATA names")
    network = Network(path, schedule="cosine:60?beta_max=0.999", prediction="eps")
    assert network.contract.shape == (1, 28, 28)
    assert network.contract.time_dtype == "int64"
    contract = network.write(tmp_path)
    x = torch.randn(3, 1, 28, 28)
    t = np.array([0, 30, 59])
    got = OnnxRun(tmp_path / "network.onnx", ("x", "t"), "out")((x.numpy(), contract.feed_times(t)))
    np.testing.assert_allclose(got, network.evaluate(x, t), atol=1e-5)
    assert network.write(tmp_path, "fp16").precision == "fp16"  # its error: tests/export/precision/test_half.py
    classifier = DATA / "mnist28_classifier.onnx"
    with pytest.raises(InputError, match="no input for the time"):
        Network(classifier, schedule="cosine:60", prediction="eps")
