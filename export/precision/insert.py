"""Q/DQ nodes around layers of a graph: their input and their weights go through eight bits, their output does not.

    x -> QuantizeLinear -> DequantizeLinear -> layer <- DequantizeLinear <- weights, int8 or fp8, a scale a channel

Outputs stay as they are: normalisation and SiLU follow, which every runtime computes in floating point. ONNX Runtime's
CPU kernels multiply integers only where the output is quantised too, so without OpenVINO `outputs` is set.

With a switch, a graph input `quantised` bool [layers] turns each layer on and off: one session measures every choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from .layers import Layer
from .ranges import Kind, Range, quantised_weights, weight_scales

if TYPE_CHECKING:
    import onnx_ir

Array = NDArray[Any]
SWITCH = "pfdiff_quantised"
MOST_BIAS = 2.0**29  # of a bias in int32: what takes back a mean error may add to it
AXES_OPSET = 18  # from which ReduceMean takes its axes as an input


def insert(
    graph: onnx_ir.Graph,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    kind: Kind,
    *,
    outputs: bool = False,
    switched: bool = False,
    shifts: Mapping[str, Array] | None = None,
) -> None:
    """Quantise `layers` of a float32 graph in place. ranges: by tensor. shifts: by layer, what its bias gains."""
    writer = _Writer(graph, kind, ranges)
    nodes = {node.name: node for node in graph}
    switch = _switch(graph, len(layers)) if switched else None
    for number, layer in enumerate(layers):
        node = nodes[layer.name]
        flag = None if switch is None else writer.taken(node, switch, number)
        for index, value in enumerate((writer.activation(node, layer.input), writer.weights(node, layer))):
            before = node.inputs[index]
            chosen = value if flag is None or before is None else writer.chosen(node, flag, value, before)
            node.replace_input_with(index, chosen)
        if shifts and layer.name in shifts:
            writer.bias(node, shifts[layer.name], flag)
        if outputs and layer.output in ranges:
            writer.output(node, ranges[layer.output], flag)


def insert_differences(
    graph: onnx_ir.Graph,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    kind: Kind,
    ranks: Mapping[str, int],
) -> dict[str, str]:
    """Every layer a second time, rounded; by layer the new tensor [channels]: the mean of exact less rounded output.

    ranks: by layer, of its output.
    """
    import onnx_ir

    writer = _Writer(graph, kind, ranges)
    nodes = {node.name: node for node in graph}
    found: dict[str, str] = {}
    for layer in layers:
        node, stem = nodes[layer.name], f"{layer.name}_rounded"
        inputs = [writer.activation(node, layer.input), writer.weights(node, layer), *node.inputs[2:]]
        rounded = onnx_ir.node(node.op_type, inputs, dict(node.attributes), name=stem)
        less = onnx_ir.node("Sub", [node.outputs[0], rounded.outputs[0]], name=f"{stem}_less")
        channels = 1 if layer.kind == "convolution" else ranks[layer.name] - 1
        others = [axis for axis in range(ranks[layer.name]) if axis != channels]
        mean = writer.mean(less.outputs[0], others, f"{stem}_mean")
        for one in (rounded, less, mean):
            one.outputs[0].name = f"{one.name}_out"
        graph.insert_after(node, [rounded, less, mean])
        found[layer.name] = f"{mean.name}_out"
    return found


def _switch(graph: onnx_ir.Graph, count: int) -> onnx_ir.Value:
    import onnx_ir

    kind = onnx_ir.TensorType(onnx_ir.DataType.BOOL)
    value = onnx_ir.Value(name=SWITCH, shape=onnx_ir.Shape([count]), type=kind)
    graph.inputs.append(value)
    return value


@final
class _Writer:
    """Adds nodes to a graph: one pair of Q and DQ for each activation, whoever reads it."""

    def __init__(self, graph: onnx_ir.Graph, kind: Kind, ranges: Mapping[str, Range]) -> None:
        self._graph, self._kind, self._ranges = graph, kind, ranges
        self._activations: dict[str, onnx_ir.Value] = {}
        self._values = {one.name: one for one in (*graph.inputs, *graph.initializers.values())}
        self._values |= {one.name: one for node in graph for one in node.outputs}

    def activation(self, node: onnx_ir.Node, name: str) -> onnx_ir.Value:
        if name not in self._activations:
            found = self._ranges[name]
            self._activations[name] = self._pair(node, self._values[name], found, f"{name}_8")
        return self._activations[name]

    def weights(self, node: onnx_ir.Node, layer: Layer) -> onnx_ir.Value:
        import onnx_ir

        stem = f"{layer.weights}_{layer.name}"
        held = self._values[layer.weights].const_value
        assert held is not None
        exact = held.numpy().astype(np.float32)
        scales = np.maximum(weight_scales(exact, layer.axis, self._kind), self._least(node, layer))
        numbers = quantised_weights(exact, scales, layer.axis, self._kind)
        stored = self._constant(f"{stem}_8", numbers, _stored_dtype(self._kind, weights=True))
        scale = self._constant(f"{stem}_scale", scales)
        zeros = np.zeros(len(scales), numbers.dtype)
        zero = self._constant(f"{stem}_zero", zeros, _stored_dtype(self._kind, weights=True))
        made = onnx_ir.node("DequantizeLinear", [stored, scale, zero], {"axis": layer.axis}, name=f"{stem}_dq")
        return self._placed(node, made, f"{stem}_dequantised")

    def _least(self, node: onnx_ir.Node, layer: Layer) -> Array:
        """The least scales of weights [channels], or 0: ONNX Runtime rounds a bias to int32 steps of both scales.

        A channel whose weights are nothing beside its bias would have steps so small that the bias overflows.
        """
        place = None if self._kind.halves else _bias_of(node)
        given = None if place is None or place[1] >= len(place[0].inputs) else place[0].inputs[place[1]]
        if given is None:
            return np.zeros(1, np.float32)
        return (np.abs(_numbers(given)) / (MOST_BIAS * self._ranges[layer.input].scale)).astype(np.float32)

    def bias(self, node: onnx_ir.Node, shift: Array, flag: onnx_ir.Value | None) -> None:
        """`shift` [channels] added where a constant is added anyway; nothing where there is none."""
        place = _bias_of(node)
        if place is None:
            return
        adder, index = place
        before = adder.inputs[index] if index < len(adder.inputs) else None
        held = np.zeros_like(shift) if before is None else _numbers(before)
        after = self._constant(f"{node.name}_shifted_bias", (held + shift).astype(np.float32))
        if flag is not None:
            exact = self._constant(f"{node.name}_exact_bias", held) if before is None else before
            after = self.chosen(adder, flag, after, exact)
        if before is None:
            adder.resize_inputs(index + 1)
        adder.replace_input_with(index, after)

    def mean(self, value: onnx_ir.Value, axes: list[int], name: str) -> onnx_ir.Node:
        import onnx_ir

        if self._graph.opset_imports.get("", 1) < AXES_OPSET:
            return onnx_ir.node("ReduceMean", [value], {"axes": axes, "keepdims": 0}, name=name)
        given = self._constant(f"{name}_axes", np.array(axes, np.int64))
        return onnx_ir.node("ReduceMean", [value, given], {"keepdims": 0}, name=name)

    def output(self, node: onnx_ir.Node, found: Range, flag: onnx_ir.Value | None) -> None:
        """The output through eight bits, for every reader; an output of the graph stays as it is."""
        value = node.outputs[0]
        position = self._graph.index(node) + 1
        if value.is_graph_output() or position == len(self._graph):
            return
        readers, following = list(value.uses()), self._graph[position]
        short = self._pair(following, value, found, f"{value.name}_8_out")
        if flag is not None:
            short = self.chosen(following, flag, short, value)
        for reader, index in readers:
            reader.replace_input_with(index, short)

    def chosen(
        self, node: onnx_ir.Node, flag: onnx_ir.Value, value: onnx_ir.Value, exact: onnx_ir.Value
    ) -> onnx_ir.Value:
        """`value` where the flag is set, else `exact`."""
        import onnx_ir

        stem = f"{node.name}_{value.name}_switched"
        return self._placed(node, onnx_ir.node("Where", [flag, value, exact], name=stem), f"{stem}_out")

    def taken(self, node: onnx_ir.Node, switch: onnx_ir.Value, number: int) -> onnx_ir.Value:
        """The flag of a layer."""
        import onnx_ir

        index = self._constant(f"{SWITCH}_{number}", np.array(number, np.int64))
        made = onnx_ir.node("Gather", [switch, index], {"axis": 0}, name=f"{SWITCH}_{number}_taken")
        return self._placed(node, made, f"{SWITCH}_{number}_flag")

    def _pair(self, node: onnx_ir.Node, value: onnx_ir.Value, found: Range, stem: str) -> onnx_ir.Value:
        import ml_dtypes
        import onnx_ir

        dtype = _stored_dtype(self._kind, weights=False)
        kinds: dict[Any, Any] = {onnx_ir.DataType.UINT8: np.uint8, onnx_ir.DataType.INT8: np.int8}
        number = np.array(found.zero, kinds.get(dtype, ml_dtypes.float8_e4m3fn))
        scale = self._constant(f"{stem}_scale", np.array(found.scale, np.float32))
        zero = self._constant(f"{stem}_zero", number, dtype)
        quantise = onnx_ir.node("QuantizeLinear", [value, scale, zero], name=f"{stem}_q")
        stored = self._placed(node, quantise, f"{stem}_quantised")
        back = onnx_ir.node("DequantizeLinear", [stored, scale, zero], name=f"{stem}_dq")
        return self._placed(node, back, f"{stem}_dequantised")

    def _placed(self, before: onnx_ir.Node, made: onnx_ir.Node, name: str) -> onnx_ir.Value:
        made.outputs[0].name = name
        self._graph.insert_before(before, made)
        return made.outputs[0]

    def _constant(self, name: str, numbers: Array, dtype: Any = None) -> onnx_ir.Value:
        import onnx_ir

        tensor = onnx_ir.tensor(numbers, dtype=dtype, name=name)
        kind = onnx_ir.TensorType(tensor.dtype)
        value = onnx_ir.Value(name=name, shape=onnx_ir.Shape(numbers.shape), type=kind, const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _bias_of(node: onnx_ir.Node) -> tuple[onnx_ir.Node, int] | None:
    """Where a constant is added to a layer's channels: (node, input); for free, or None."""
    if node.op_type == "MatMul":
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add":
            return None
        adder, index = uses[0].node, 1 - uses[0].idx
    else:
        adder, index = node, 2
        beta = node.attributes.get("beta")
        if beta is not None and beta.as_float() != 1.0:
            return None
    given = adder.inputs[index] if index < len(adder.inputs) else None
    if given is not None and (given.const_value is None or _numbers(given).ndim != 1):
        return None
    return adder, index


def _numbers(value: onnx_ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


def _stored_dtype(kind: Kind, *, weights: bool) -> Any:
    import onnx_ir

    if kind.name == "fp8":
        return onnx_ir.DataType.FLOAT8E4M3FN
    return onnx_ir.DataType.INT8 if weights or kind.symmetric else onnx_ir.DataType.UINT8
