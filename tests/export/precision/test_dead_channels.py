"""Channels without weights, which networks have where they were initialised with zeros or pruned: integer kernels round
the bias to steps of the input's scale times the weights', and int32 holds 2^31 of these."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from pfdiff.engine.errors import InputError
from pfdiff.export.check import TrialInputs
from pfdiff.export.precision.added import Added
from pfdiff.export.precision.quantise import quantise
from pfdiff.export.precision.ranges import INT8_CPU, INT8_SMALL, Kind, kind_of
from pfdiff.export.precision.trajectory import Evaluate
from pfdiff.export.precision.write import differing_lines

GRAPH = """<ir_version: 10, opset_import: ["" : 21]> net (float[b,4,6,6] x) => (float[b,4,6,6] out) {
y = Conv<pads=[1,1,1,1]>(x, w, bias)  z = Relu(y)  out = Conv(z, v) }"""


class Single:
    """A task of given cases, whose bound is on the output."""

    inputs, output, time = ("x",), "out", ""

    def __init__(self, cases: list[TrialInputs]) -> None:
        self._cases = cases
        self._exact: list[np.ndarray] = []

    def cases(self, evaluate: Evaluate) -> list[TrialInputs]:
        self._exact = [evaluate(case) for case in self._cases]
        return self._cases

    def others(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self._cases

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, Added]:
        found = [evaluate(case) for case in self._cases]
        return {"out": Added.of(np.concatenate(found) - np.concatenate(self._exact), 1.0)}


@pytest.mark.parametrize("kind", [kind_of("int8", for_gpu=False), INT8_SMALL])  # what is right on this CPU
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-9, 1e-5])
def test_a_bias_beside_weights_that_are_nothing_is_kept(kind: Kind, size: float) -> None:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6
    weights[1] *= np.float32(size)
    constants = {"w": weights, "bias": np.array([0.1, 1.5, -0.2, 0], np.float32)}
    constants["v"] = generator.standard_normal((4, 4, 1, 1)).astype(np.float32)
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    case = TrialInputs(generator.standard_normal((16, 4, 6, 6)).astype(np.float32), np.empty(0), ())
    for outputs in (False, True):
        made = quantise(model, Single([case]), kind, outputs=outputs, say=lambda line: None).model
        found, wanted = (
            np.asarray(
                onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                    None, {"x": case.x}
                )[0]
            )
            for one in (made, model)
        )
        assert 0 < np.sqrt(np.mean(np.square(found - wanted))) < 0.05 * np.sqrt(np.mean(np.square(wanted)))


def test_weights_that_are_not_finite_are_named() -> None:
    weights = np.ones((4, 4, 3, 3), np.float32)
    weights[1, 2] = np.inf
    constants = {"w": weights, "bias": np.zeros(4, np.float32), "v": np.ones((4, 4, 1, 1), np.float32)}
    model = onnx.parser.parse_model(GRAPH.replace("Relu(y)", "Clip(y, zero, one)"))
    constants |= {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    case = TrialInputs(np.ones((2, 4, 6, 6), np.float32), np.empty(0), ())
    with pytest.raises(InputError, match="weights 'w' of 'node_0' have infinite values or NaN"):
        quantise(model, Single([case]), INT8_CPU, say=lambda line: None)


def test_a_library_that_computes_something_else_is_named() -> None:
    lines = differing_lines({"one": 0.031, "other": 0.5, "third": math.nan}, 0.03, "int8")
    assert [line.split(" computes")[0] for line in lines] == ["int8: other", "int8: third"]
    assert "relative error of 0.5, the graph itself has 0.03" in lines[0]
