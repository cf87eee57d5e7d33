"""An ONNX file that is fed a map of the schedule's time: nodes before its time input, a sign behind its output."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.compiler.schedule import Discrete, parse_schedule
from ...engine.contract.contract import Contract
from ..check import Array, TrialInputs, check_export
from ..time_map import TimeMap, formula
from ..to_onnx import save_model
from .from_onnx import OnnxSource

if TYPE_CHECKING:
    import onnx_ir


@final
class MappedOnnx:
    """An OnnxSource with a time map; like it, a source of `Network`."""

    def __init__(self, source: OnnxSource, time_map: TimeMap, *, negated: bool) -> None:
        self._source, self._map, self._negated = source, time_map, negated
        self._schedule = parse_schedule(source.contract.schedule)
        time_map.values([self._schedule.first, self._schedule.last], self._schedule)  # finite
        self.contract: Contract = replace(source.contract, time_dtype="float32")

    def content(self) -> bytes:
        return b"|".join((self._source.content(), f"{self._map} {self._negated}".encode()))

    def evaluate(self, inputs: TrialInputs) -> Array:
        """The file itself, fed the map in float64, float32 [B, *shape]."""
        process = self._schedule
        times = inputs.t.astype(np.float64)
        # Float32 misses the ends of a continuous schedule by a rounding.
        fed = self._map.values(np.clip(times, process.first, process.last), process)
        whole = self._source.contract.time_dtype == "int64"
        given = np.rint(fed).astype(np.int64) if whole else fed.astype(np.float32)
        out = self._source.evaluate(TrialInputs(inputs.x, given, inputs.conditions))
        return -out if self._negated else out

    def write(self, path: Path, precision: str, *, external: bool | None) -> Contract:
        """Write the mapped graph and compare it with the file. Raises InputError."""
        import onnx_ir

        with tempfile.TemporaryDirectory(prefix=".mapped-", dir=path.parent) as folder:
            plain = Path(folder) / path.name
            self._source.write(plain, precision, external=external)
            model = onnx_ir.load(plain)
            self._rewrite(model)
            save_model(model, path, external=external)
        if self.contract.precision != "bf16":  # no CPU kernels for that
            check_export(path, replace(self.contract, precision="fp32"), self.evaluate)
        return self.contract

    def _rewrite(self, model: onnx_ir.Model) -> None:
        import onnx_ir

        graph, contract = model.graph, self.contract
        index, fed = next((i, one) for i, one in enumerate(graph.inputs) if one.name == contract.time)
        first = next(iter(graph))
        fresh = onnx_ir.Value(name=contract.time, shape=fed.shape, type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
        fed.name = f"{contract.time}_fed"
        graph.inputs[index] = fresh
        nodes: list[onnx_ir.Node] = []
        time = GraphNumber(graph, nodes, fresh)
        if isinstance(self._schedule, Discrete) and self._map.quantity != "t":
            table = self._map.values(np.arange(self._schedule.last + 1), self._schedule).astype(np.float32)
            mapped = time.apply("Round").apply("Cast", to=7).taken_from(table)
        else:
            mapped = formula(self._map, self._schedule)(time)
        if self._source.contract.time_dtype == "int64":
            mapped = mapped.apply("Round").apply("Cast", to=7)
        onnx_ir.convenience.replace_all_uses_with(fed, mapped.value)
        graph.insert_before(first, nodes)
        if self._negated:
            out = graph.outputs[0]
            out.name = f"{contract.output}_against"
            node = onnx_ir.node("Neg", [out], name="pfdiff_time_sign")
            last = node.outputs[0]
            last.name, last.shape, last.type = contract.output, out.shape, out.type
            graph.outputs[0] = last
            graph.append(node)


@final
class GraphNumber:
    """A float32 value of a graph with arithmetic: each operation adds a node to `nodes`."""

    def __init__(self, graph: onnx_ir.Graph, nodes: list[onnx_ir.Node], value: onnx_ir.Value) -> None:
        self.graph, self.nodes, self.value = graph, nodes, value

    def apply(self, kind: str, *others: onnx_ir.Value, **attributes: Any) -> GraphNumber:
        import onnx_ir

        name = f"pfdiff_time_{len(self.nodes)}_{kind}"
        node = onnx_ir.node(kind, [self.value, *others], attributes, name=name)
        node.outputs[0].name = f"{name}_out"
        self.nodes.append(node)
        return GraphNumber(self.graph, self.nodes, node.outputs[0])

    def taken_from(self, table: Array) -> GraphNumber:
        """table[self], with self int64."""

        index = self.value
        held = GraphNumber(self.graph, self.nodes, self._constant(table))
        return held.apply("Gather", index, axis=0)

    def _constant(self, value: Any) -> onnx_ir.Value:
        import onnx_ir

        array = np.asarray(value, np.float32)
        name = f"pfdiff_time_constant_{len(self.nodes)}_{len(self.graph.initializers)}"
        constant = onnx_ir.Value(
            name=name,
            shape=onnx_ir.Shape(array.shape),
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT),
            const_value=onnx_ir.tensor(array, name=name),
        )
        self.graph.register_initializer(constant)
        return constant

    def _with(self, kind: str, other: GraphNumber | float) -> GraphNumber:
        return self.apply(kind, other.value if isinstance(other, GraphNumber) else self._constant(other))

    def __add__(self, other: GraphNumber | float) -> GraphNumber:
        return self._with("Add", other)

    def __sub__(self, other: GraphNumber | float) -> GraphNumber:
        return self._with("Sub", other)

    def __rsub__(self, other: float) -> GraphNumber:
        return self * -1.0 + other

    def __mul__(self, other: GraphNumber | float) -> GraphNumber:
        return self._with("Mul", other)

    def __truediv__(self, other: GraphNumber | float) -> GraphNumber:
        return self._with("Div", other)

    def log(self) -> GraphNumber:
        return self.apply("Log")

    def exp(self) -> GraphNumber:
        return self.apply("Exp")

    def tanh(self) -> GraphNumber:
        return self.apply("Tanh")
