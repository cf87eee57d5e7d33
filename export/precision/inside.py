"""What a Q/DQ file holds: how many of its layers compute in eight bits, and whether its scales make sense.

    int8 inside: 61 of 74 convolutions, 11 of 13 linear layers

A layer counts when its weights come from a DequantizeLinear, whoever wrote it: ONNX Runtime, ModelOpt, NNCF or this
project. "int8 inside" has inputs and weights of 8 bits, "int16 and int8 inside" wider inputs, and where inputs are in
floating point it is "int4 weights inside". Operators that are quantised themselves count too, such as QLinearConv.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.errors import InputError
from .layers import KINDS

if TYPE_CHECKING:
    import onnx

UINT8, INT8 = 2, 3  # onnx.TensorProto's
KINDS_OF_BITS = {UINT8: "int8", INT8: "int8", 4: "int16", 5: "int16", 21: "int4", 22: "int4", 23: "fp4"}
KINDS_OF_BITS |= dict.fromkeys((17, 18, 19, 20), "fp8")  # FLOAT8E4M3FN and its three relatives
# Quantised operators: kind, place of the weights, of the input's zero point (uint8 where it is not a constant).
OPERATORS = {
    "QLinearConv": ("convolution", 3, 2),
    "QLinearMatMul": ("linear layer", 3, 2),
    "QGemm": ("linear layer", 3, 2),
    "ConvInteger": ("convolution", 1, 2),
    "MatMulInteger": ("linear layer", 1, 2),
    "MatMulIntegerToFloat": ("linear layer", 1, 4),
    "DynamicQuantizeMatMul": ("linear layer", 1, -1),
    "MatMulNBits": ("linear layer", 1, -1),
}
# Where their scales are; those of weights alone may be negative.
SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,), "QLinearConv": (1, 4, 6), "QLinearMatMul": (1, 4, 6)}
SCALES |= {"QGemm": (1, 4, 7), "QLinearAdd": (1, 4, 6), "QLinearMul": (1, 4, 6), "QLinearSigmoid": (1, 3)}
# What a DequantizeLinear's output may pass through on its way to a layer.
THROUGH = ("Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity")


def inside(model: onnx.ModelProto) -> dict[str, str]:
    """{"int8 inside": "61 of 74 convolutions, ..."}; empty where nothing is quantised. Weights need not be loaded.

    Before it, such as in "int16 and int8 inside", what the input has and what the weights have.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {one.name: one.data_type for one in model.graph.initializer}
    found: dict[str, dict[str, int]] = {}
    every: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in OPERATORS:
            kind, place, _ = OPERATORS[node.op_type]
            weighed, name = _is_constant(node.input[place], makers, constants), _of_operator(node, constants)
        elif node.op_type in KINDS and len(node.input) > 1:
            kind = KINDS[node.op_type]
            before, stored = (_stored(one, makers, constants) for one in node.input[:2])
            weighed = stored is not None or _is_constant(node.input[1], makers, constants)
            name = _of_pair(before, stored)
        else:
            continue
        if not weighed:
            continue  # a product of two activations
        every[kind] = every.get(kind, 0) + 1
        if name:
            counts = found.setdefault(name, {})
            counts[kind] = counts.get(kind, 0) + 1
    kinds = sorted(every.items())
    return {
        f"{name} inside": ", ".join(f"{counts.get(kind, 0)} of {_named(total, kind)}" for kind, total in kinds)
        for name, counts in found.items()
    }


def _of_pair(before: int | None, weights: int | None) -> str:
    """What a layer computes in, by what its input and its weights are dequantised from; "" in floating point."""
    if weights is None:
        return ""
    name = KINDS_OF_BITS.get(weights, "int8")
    if before is None:
        return f"{name} weights"
    of_input = KINDS_OF_BITS.get(before, "int8")
    return name if of_input == name else f"{of_input} and {name}"


def _of_operator(node: onnx.NodeProto, constants: Mapping[str, int]) -> str:
    if node.op_type == "MatMulNBits":
        bits = next((one.i for one in node.attribute if one.name == "bits"), 4)
        return f"int{bits} weights"
    weights = constants.get(node.input[OPERATORS[node.op_type][1]], INT8)
    return KINDS_OF_BITS.get(weights, "int8")


def _named(total: int, kind: str) -> str:
    return f"{total} {kind}{'s' if total != 1 else ''}"


def widest_weight(model: onnx.ModelProto) -> int:
    """The largest absolute number of int8 weights that meet uint8 inputs; 0 without any, 128 where it is not read."""
    from onnx import numpy_helper

    makers = {name: node for node in model.graph.node for name in node.output}
    tensors = {one.name: one for one in model.graph.initializer}
    constants = {name: one.data_type for name, one in tensors.items()}
    most = 0
    for node in model.graph.node:
        if node.op_type in OPERATORS:
            _, place, zero = OPERATORS[node.op_type]
            given = node.input[zero] if 0 <= zero < len(node.input) else ""
            name, before = node.input[place], constants.get(given, UINT8)
            weights = constants.get(name)
        elif node.op_type in KINDS and len(node.input) > 1:
            before, weights = (_stored(one, makers, constants) for one in node.input[:2])
            name = node.input[1]
        else:
            continue
        if before != UINT8 or weights != INT8:
            continue
        tensor = tensors.get(name if name in tensors else _dequantised(name, makers))
        if tensor is None or tensor.data_location == 1:  # made in the graph, or beside the file
            most = 128
        else:
            most = max(most, int(np.abs(numpy_helper.to_array(tensor).astype(np.int16)).max(initial=0)))
    return most


def check_scales(model: onnx.ModelProto, path: object) -> None:
    """Raises InputError when a scale of a quantised node is not finite or not above 0, naming it.

    Those of constant weights may be negative, which weights in blocks of 4 bits of ONNX Runtime's are.
    """
    from onnx import numpy_helper

    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    for node in model.graph.node:
        for name in (node.input[one] for one in SCALES.get(node.op_type, ()) if one < len(node.input)):
            tensor = constants.get(name)
            if tensor is None or tensor.data_location == 1:  # computed, or in another file: tiny tensors are not
                continue
            scale = np.asarray(numpy_helper.to_array(tensor)).astype(np.float64)
            of_weights = node.op_type == "DequantizeLinear" and node.input[0] in constants
            wrong = ~(np.isfinite(scale) & ((np.abs(scale) if of_weights else scale) > 0))
            if wrong.any():
                raise InputError(
                    f"network '{path}': the scale '{name}' of {node.op_type} '{node.name or node.output[0]}' "
                    f"holds {scale[wrong].flat[0]:g}, expected finite numbers above 0; quantise the network again"
                )


def layers_line(layers: Mapping[str, Any]) -> str:
    """`25 of 25 convolutions, 0 of 9 linear layers` of a record."""
    return ", ".join(f"{some} of {_named(total, kind)}" for kind, (some, total) in layers.items())


def _stored(name: str, makers: Mapping[str, Any], constants: Mapping[str, int]) -> int | None:
    """The dtype that a value is dequantised from, None where it is not."""
    node = makers.get(name)
    while node is not None and node.op_type in THROUGH:
        name = node.input[0]
        node = makers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    before = makers.get(node.input[0])
    zero = node.input[2] if len(node.input) > 2 else ""
    if zero in constants:
        return constants[zero]
    if node.input[0] in constants:
        return constants[node.input[0]]
    dtype = next((one.i for one in before.attribute if one.name == "output_dtype"), 0) if before is not None else 0
    return dtype or 2


def _dequantised(name: str, makers: Mapping[str, Any]) -> str:
    """What the DequantizeLinear that makes a value reads."""
    node = makers[name]
    while node.op_type in THROUGH:
        node = makers[node.input[0]]
    return node.input[0]


def _is_constant(name: str, makers: Mapping[str, Any], constants: Mapping[str, int]) -> bool:
    node = makers.get(name)
    while node is not None and node.op_type in THROUGH:
        name = node.input[0]
        node = makers.get(name)
    return name in constants or (node is not None and node.op_type == "Constant")
