"""What stays float32 in a half-precision graph, by rule; what the numbers demand besides is found by running it.

time        everything computed from the time alone, up to the first layer with weights: at t = 999 the angles of an
            embedding need 10 bits before the point, and float16 has 11 in all, bfloat16 8
statistics  means, sums and norms over an axis, and what is computed from them alone: squares of a picture's values
            leave float16's range, and an epsilon of 1e-5 has no digits in it
operators   that ONNX defines for float32 only, or whose operands are counts
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx
    import onnx_ir

LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
STATISTICS: Final = (
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "GlobalAveragePool",
    "MeanVarianceNormalization",
    "LpNormalization",
)
# Computed in float32 by themselves, as full tensors: what follows them is not.
OPERATORS: Final = ("Sin", "Cos", "Pow", "Range", "CumSum", "InstanceNormalization", "NonMaxSuppression", "TopK")
# With a stash_type of float32 these have float32 statistics whatever they are given; GroupNormalization from opset 21.
STASHED: Final = {"GroupNormalization": 21, "LayerNormalization": 17, "RMSNormalization": 23}
# Scales of Q/DQ nodes may be float16 from opset 19.
SCALED: Final = {"QuantizeLinear": 19, "DequantizeLinear": 19}
LARGEST_FLOAT16 = 65504.0


def float32_by_rule(graph: onnx_ir.Graph, time: str, opset: int) -> set[str]:
    """Names of the nodes that stay float32."""
    of_time = {time}
    statistics: set[str] = set()
    kept: set[str] = set()
    for node in graph:
        inputs = [one.name for one in node.inputs if one is not None and one.const_value is None and one.name]
        outputs = [one.name for one in node.outputs if one.name]
        name = node.name or ""
        if node.op_type not in LAYERS and inputs and all(one in of_time for one in inputs):
            of_time.update(outputs)
            kept.add(name)
        elif node.op_type in STATISTICS or (
            inputs and node.op_type not in LAYERS and all(one in statistics or one in of_time for one in inputs)
        ):
            statistics.update(outputs)
            kept.add(name)
        elif (
            node.op_type in OPERATORS
            or opset < (STASHED | SCALED).get(node.op_type, 0)
            or any(True for _ in _subgraphs(node))
        ):
            kept.add(name)
    return kept


def out_of_range(graph: onnx_ir.Graph, largest: dict[str, float]) -> set[str]:
    """Names of the nodes that read or write a value, or hold a constant, beyond float16's range.

    largest: by tensor, the largest absolute value seen.
    """
    found: set[str] = set()
    for node in graph:
        for value in (*node.inputs, *node.outputs):
            if value is None:
                continue
            held = value.const_value
            most = largest.get(value.name or "", 0.0)
            if held is not None and held.dtype.is_floating_point() and held.size:
                most = float(abs(held.numpy()).max())
            if not most <= LARGEST_FLOAT16:
                found.add(node.name or "")
    return found


def _subgraphs(node: onnx_ir.Node) -> Iterator[object]:
    for attribute in node.attributes.values():
        if attribute.type.name in ("GRAPH", "GRAPHS"):
            yield attribute


def captured_as_float32(model: onnx.ModelProto, kept: set[str]) -> None:
    """What graphs inside nodes (If, Loop) read of the graph around them comes by a float32 copy, as they stay float32.

    The copies are nodes of the model, in place, and join `kept`. Without a type, they get no cast behind them.
    """
    import onnx

    floats = {one.name for one in (*model.graph.value_info, *model.graph.input) if one.type.tensor_type.elem_type == 1}
    floats |= {one.name for one in model.graph.initializer if one.data_type == 1}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in model.graph.node:
        for graph in _graphs(node):
            for name in sorted(_captured(graph) & floats):
                fresh = f"{name}_captured"
                if fresh not in made:
                    nodes.append(onnx.helper.make_node("Identity", [name], [fresh], name=f"{fresh}_node"))
                    kept.add(f"{fresh}_node")
                    made.add(fresh)
                _rename(graph, name, fresh)
        nodes.append(node)
    if made:
        held = onnx.GraphProto(node=nodes)  # copies, which the next line does not empty
        del model.graph.node[:]
        model.graph.node.extend(held.node)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for one in node.attribute for graph in (*([one.g] if one.HasField("g") else []), *one.graphs)]


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph reads and does not define."""
    own = {one.name for one in (*graph.input, *graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input}
    for node in graph.node:
        for inner in _graphs(node):
            read |= _captured(inner)
    return read - own - {""}


def _rename(graph: onnx.GraphProto, name: str, fresh: str) -> None:
    for node in graph.node:
        for index, one in enumerate(node.input):
            if one == name:
                node.input[index] = fresh
        for inner in _graphs(node):
            if name in _captured(inner):
                _rename(inner, name, fresh)
