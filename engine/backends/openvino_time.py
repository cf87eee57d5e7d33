"""What an OpenVINO network computes from the time alone stays float32, as network.onnx says.

Asked for bf16, the CPU plugin rounds every float32 value of a graph, among them the time and the angles of its
embedding. bf16 has 8 bits: 999 becomes 1000, and an angle of 640 is off by up to 2. An attribute exempts single nodes
(`DisablePrecisionConversion`, "precise" in OpenVINO's own files), but Python cannot set it. So the part of the time is
written as such a file with the attribute, read again, and takes its own place.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op

from .openvino_affine import SHAPED, join_affine

# Layers with weights, and nodes with a graph inside: the time's part ends before them.
ENDS = ("MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "If", "Loop", "TensorIterator")
MARK = '<rt_info><attribute name="precise" version="0" /></rt_info>'
# The head of a layer in OpenVINO's file, after which a mark may stand.
LAYER = re.compile(r'<layer [^>]*type="(?!Const"|Parameter"|Result")[^"]*"[^>]*>\s*(?:<data [^>]*/>)?')


def time_in_float32(model: Any, time: str) -> None:
    """Exempt the part of `model`, of static shapes, that depends on the input `time` alone; in place."""
    start = next((one for one in model.get_parameters() if time in one.output(0).get_names()), None)
    if start is None or not (inside := _of_time(model, start)):
        return
    readers = {
        value: [one for one in value.get_target_inputs() if one.get_node() not in inside]
        for node in inside
        for value in node.outputs()
    }
    ends = [value for value, found in readers.items() if found]
    results = [op.result(value) for value in ends]
    part: Any = openvino.Model(results, [start], "time")  # pyright: ignore[reportGeneralTypeIssues]  # two classes Model
    join_affine(part)
    _with_own_shapes(part)
    made = _marked(part)
    for value, result in zip(ends, made.get_results(), strict=True):
        for reader in readers[value]:
            reader.replace_source_output(result.input_value(0))
    for reader in list(made.get_parameters()[0].output(0).get_target_inputs()):
        reader.replace_source_output(start.output(0))


def _of_time(model: Any, start: Any) -> list[Any]:
    """The nodes computed from the time and constants, in order, up to layers with weights."""
    inside: list[Any] = []
    for node in model.get_ordered_ops():
        sources = [one.get_source_output().get_node() for one in node.inputs()]
        of_time = [one == start or one in inside for one in sources]
        known = (yes or one.get_type_name() == "Constant" for yes, one in zip(of_time, sources, strict=True))
        if any(of_time) and all(known) and node.get_type_name() not in (*ENDS, "Result"):
            inside.append(node)
    return inside


def _with_own_shapes(part: Any) -> None:
    """The plugin turns an Unsqueeze into a Reshape without the mark; a Reshape keeps it."""
    for node in part.get_ordered_ops():
        if node.get_type_name() in SHAPED and node.get_output_partial_shape(0).is_static:
            form = op.constant(np.array(node.get_output_shape(0), np.int64))
            node.output(0).replace(op.reshape(node.input_value(0), form, special_zero=False).output(0))


def _marked(part: Any) -> Any:
    with tempfile.TemporaryDirectory(prefix="pfdiff-time-") as folder:
        graph, weights = Path(folder) / "time.xml", Path(folder) / "time.bin"
        openvino.serialize(part, graph, weights)
        text, numbers = graph.read_text(encoding="utf-8"), weights.read_bytes()
    marked = LAYER.sub(lambda head: head.group(0) + MARK, text)
    return openvino.Core().read_model(marked.encode(), numbers)
