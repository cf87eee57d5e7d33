"""The mean error of layers in eight bits, by NumPy in float64, and what biases gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper

from pfdiff.export.check import TrialInputs
from pfdiff.export.precision.calibration.bias import shifts_of
from pfdiff.export.precision.half import prepared
from pfdiff.export.precision.insert import insert
from pfdiff.export.precision.layers import quantisable
from pfdiff.export.precision.observe import GraphRun
from pfdiff.export.precision.ranges import INT8_CPU, Range

SCALE, ZERO = 0.05, 3
# Inputs [n, 3, 4, 4]; three layers of the same input, one of them with a bias that is added after it.
LAYERS = """<ir_version: 10, opset_import: ["" : OPSET]>
net (float[b,3,4,4] x) => (float[b,2,4,4] out, float[b,5] linear, float[b,3,4,5] pixels, float[b,3,4,5] bare) {
out = Conv<pads = [1, 1, 1, 1]>(x, w, c)
flat = Flatten(x)  linear = Gemm<transB = 1>(flat, g)
product = MatMul(x, m)  pixels = Add(a, product)
bare = MatMul(x, n) }"""
SHAPES = {"w": (2, 3, 3, 3), "c": (2,), "g": (5, 48), "m": (4, 5), "a": (5,), "n": (4, 5)}


def net(opset: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    constants = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    model = onnx.parser.parse_model(LAYERS.replace("OPSET", str(opset)))
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return prepared(model), constants


def cases() -> list[TrialInputs]:
    generator = np.random.default_rng(2)
    return [TrialInputs(generator.random((6, 3, 4, 4), dtype=np.float32) + n, np.empty(0), ()) for n in range(3)]


def rounded(x: np.ndarray) -> np.ndarray:
    return (np.clip(np.rint(x / np.float32(SCALE)) + ZERO, 0, 255) - ZERO) * np.float32(SCALE)


def rounded_weights(w: np.ndarray, axis: int) -> np.ndarray:
    largest = np.abs(w).max(axis=tuple(one for one in range(w.ndim) if one != axis), keepdims=True)
    return np.rint(w / (largest / 127)) * (largest / 127)


def convolved(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, w.astype(np.float64))


@pytest.mark.parametrize("opset", [17, 21])
def test_shifts_are_the_mean_errors_and_go_where_a_constant_is_added(opset: int) -> None:
    model, constants = net(opset)
    layers = quantisable(onnx_ir.from_proto(model).graph, "")
    assert len(layers) == 4
    ranges = {one.input: Range(SCALE, ZERO, -ZERO * SCALE, (255 - ZERO) * SCALE) for one in layers}
    ranks = {one.name: 2 if one.weights == "g" else 4 for one in layers}
    shifts = shifts_of(model, ("x",), layers, ranges, INT8_CPU, cases(), ranks)
    x = np.concatenate([one.x for one in cases()])
    products: dict[str, Any] = {
        "w": lambda x, w: convolved(x, w).mean((0, 2, 3)),
        "g": lambda x, w: (x.reshape(len(x), -1).astype(np.float64) @ w.T.astype(np.float64)).mean(0),
        "m": lambda x, w: (x.astype(np.float64) @ w.astype(np.float64)).mean((0, 1, 2)),
    }
    products["n"] = products["m"]
    for layer in layers:
        product, w = products[layer.weights], constants[layer.weights]
        wanted = product(x, w) - product(rounded(x), rounded_weights(w, layer.axis))
        np.testing.assert_allclose(shifts[layer.name], wanted, atol=2e-5)

    read = onnx_ir.from_proto(model)
    insert(read.graph, layers, ranges, INT8_CPU, shifts=shifts)
    exact, short = GraphRun(model, ("x",)), GraphRun(onnx_ir.to_proto(read), ("x",))
    for name, axes in {"out": (0, 2, 3), "linear": (0,), "pixels": (0, 1, 2)}.items():
        error = np.mean([exact(one)[name] - short(one)[name] for one in cases()], axis=0).mean(axes)
        np.testing.assert_allclose(error, 0, atol=2e-5)
    bare = np.mean([exact(one)["bare"] - short(one)["bare"] for one in cases()], axis=0).mean((0, 1, 2))
    np.testing.assert_allclose(bare, shifts[layers[3].name], atol=2e-5)  # nothing is added there, so nothing is shifted
    assert np.abs(bare).max() > 1e-3
