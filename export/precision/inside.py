"""What a Q/DQ file holds: how many of its layers compute in eight bits, and whether its scales make sense.

    int8 inside: 61 of 74 convolutions, 11 of 13 linear layers

A layer counts when both its input and its weights come from a DequantizeLinear, whoever wrote it: ONNX Runtime,
ModelOpt, NNCF or this project.
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
FLOAT8 = (17, 18, 19, 20)  # onnx.TensorProto.FLOAT8E4M3FN and its three relatives
# What a DequantizeLinear's output may pass through on its way to a layer.
THROUGH = ("Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity")


def inside(model: onnx.ModelProto) -> dict[str, str]:
    """{"int8 inside": "61 of 74 convolutions, ..."}; empty where nothing is quantised. Weights need not be loaded."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {one.name: one.data_type for one in model.graph.initializer}
    found: dict[str, dict[str, int]] = {}
    every: dict[str, int] = {}
    for node in model.graph.node:
        kind = KINDS.get(node.op_type)
        if kind is None or len(node.input) < 2:
            continue
        stored = [_stored(name, makers, constants) for name in node.input[:2]]
        weighed = stored[1] is not None or _is_constant(node.input[1], makers, constants)
        if not weighed:
            continue  # a product of two activations
        every[kind] = every.get(kind, 0) + 1
        if all(stored):
            name = "fp8" if stored[0] in FLOAT8 else "int8"
            counts = found.setdefault(name, {})
            counts[kind] = counts.get(kind, 0) + 1
    kinds = sorted(every.items())
    return {
        f"{name} inside": ", ".join(f"{counts.get(kind, 0)} of {_named(total, kind)}" for kind, total in kinds)
        for name, counts in found.items()
    }


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
        if node.op_type not in KINDS or len(node.input) < 2 or _stored(node.input[0], makers, constants) != UINT8:
            continue
        if _stored(node.input[1], makers, constants) != INT8:
            continue
        tensor = tensors.get(_dequantised(node.input[1], makers))
        if tensor is None or tensor.data_location == 1:  # made in the graph, or beside the file
            most = 128
        else:
            most = max(most, int(np.abs(numpy_helper.to_array(tensor).astype(np.int16)).max(initial=0)))
    return most


def check_scales(model: onnx.ModelProto, path: object) -> None:
    """Raises InputError when a scale of a Q or DQ node is not finite or not above 0, naming it."""
    from onnx import numpy_helper

    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 2:
            continue
        tensor = constants.get(node.input[1])
        if tensor is None or tensor.data_location == 1:  # computed, or in another file: tiny tensors are not
            continue
        scale = np.asarray(numpy_helper.to_array(tensor)).astype(np.float64)
        wrong = ~(np.isfinite(scale) & (scale > 0))
        if wrong.any():
            raise InputError(
                f"network '{path}': the scale '{node.input[1]}' of {node.op_type} '{node.name or node.output[0]}' "
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
