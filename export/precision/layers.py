"""The convolutions and linear layers of a graph that can be quantised: Conv, Gemm and MatMul with constant weights.

Left out are layers of the time alone, which cost nothing and whose error reaches every block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import onnx_ir

KINDS = {"Conv": "convolution", "Gemm": "linear layer", "MatMul": "linear layer"}
NAMES = tuple(dict.fromkeys(KINDS.values()))  # in the order in which they are counted


@final
@dataclass(frozen=True)
class Layer:
    """A layer by its node's name: what it reads, its weights, the axis of its output channels in them, its output."""

    name: str
    kind: str
    input: str
    weights: str
    axis: int
    output: str

    def products(self, shapes: Mapping[str, tuple[int, ...]], weights: Sequence[int]) -> float:
        """Multiplications of one evaluation, given the shape of its output."""
        return math.prod(shapes[self.output]) * math.prod(weights) / weights[self.axis]


def quantisable(graph: onnx_ir.Graph, time: str) -> list[Layer]:
    """Every layer of `graph` that can be quantised, in order."""
    of_time = {time}
    found: list[Layer] = []
    for node in graph:
        inputs = [one.name for one in node.inputs if one is not None and one.const_value is None and one.name]
        if inputs and all(one in of_time for one in inputs):
            of_time.update(one.name for one in node.outputs if one.name)
        elif (layer := _layer(node)) is not None:
            found.append(layer)
    return found


def _layer(node: onnx_ir.Node) -> Layer | None:
    if node.op_type not in KINDS or len(node.inputs) < 2:
        return None
    x, weights = node.inputs[0], node.inputs[1]
    if x is None or weights is None or x.const_value is not None or weights.const_value is None:
        return None
    shape, output = weights.const_value.shape, node.outputs[0].name
    if weights.const_value.dtype.name != "FLOAT" or len(shape) < 2 or not x.name or not output:
        return None
    axis = 0
    if node.op_type == "MatMul":
        axis = len(shape) - 1
    elif node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        axis = 0 if transposed is not None and transposed.as_int() else 1
    return Layer(node.name or "", KINDS[node.op_type], x.name, weights.name or "", axis, output)


def counted(layers: list[Layer], kept: set[str]) -> dict[str, tuple[int, int]]:
    """By kind (quantised, all)."""
    kinds = [name for name in NAMES if any(one.kind == name for one in layers)]
    return {
        kind: (
            sum(one.kind == kind and one.name not in kept for one in layers),
            sum(one.kind == kind for one in layers),
        )
        for kind in kinds
    }
