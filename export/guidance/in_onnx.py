"""Classifier-free guidance of an ONNX file: the graph itself runs both halves in one batch.

Before the network a Concat of each input with itself or with its unconditional value; behind it, in float32, the
combination of the two halves. Weights and operators in between stay as they are. A network of a fixed batch 2 n
becomes one of batch n; an odd one is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.contract.contract import Contract
from ...engine.errors import InputError
from ..check import Array, TrialInputs, check_export
from ..sources.from_onnx import OnnxSource
from ..sources.mapped_onnx import MappedOnnx
from ..to_onnx import save_model
from .options import NAME, Halves

if TYPE_CHECKING:
    import onnx_ir


@final
class GuidedOnnx:
    """A guided OnnxSource; like it, a source of `Network`."""

    def __init__(self, source: OnnxSource | MappedOnnx, halves: Halves) -> None:
        contract, fixed = source.contract, source.contract.fixed_batch
        if halves.guidance.keep or halves.guidance.offset:
            raise InputError(
                f"guidance: network '{contract.name}' is an ONNX file, which has neither keep nor offset; give the "
                "nn.Module, or leave them out"
            )
        if fixed is not None and fixed % 2:
            raise InputError(
                f"network '{contract.name}' takes batches of {fixed} only, and guidance evaluates two halves in one "
                "batch; export it with an open or an even batch"
            )
        self._source, self._halves = source, halves
        self.contract: Contract = replace(
            contract, conditions=halves.conditions, fixed_batch=None if fixed is None else fixed // 2
        )

    def content(self) -> bytes:
        halves = self._halves
        described = [f"guided {halves.interval} {halves.guidance.rescale}".encode()]
        for name, value in halves.values.items():
            described.append(f"{name}:{value}".encode() if value is None or isinstance(value, str) else value.tobytes())
        return b"|".join([self._source.content(), *described])

    def evaluate(self, case: TrialInputs) -> Array:
        """The file evaluated for each half by itself, float32 [B, *shape]."""
        halves, count = self._halves, len(case.x)
        given = dict(zip((one.name for one in halves.conditions), case.conditions, strict=True))
        conditional = [given[name] for name in halves.values]
        other = [given[value] if isinstance(value, str) else value for value in halves.values.values()]
        unconditional = [
            own if value is None else np.broadcast_to(value, own.shape).astype(own.dtype)
            for own, value in zip(conditional, other, strict=True)
        ]
        pad = 2 if self.contract.fixed_batch else 1  # a network of a fixed batch sees each half twice
        c, u = (
            self._source.evaluate(_repeated(case.x, case.t, values, pad))[:count]
            for values in (conditional, unconditional)
        )
        scale = given[NAME]
        if halves.interval is not None:
            low, high = halves.interval
            scale = np.where((case.t >= low) & (case.t <= high), scale, np.float32(1))
        guided = u + scale.reshape(-1, *[1] * (c.ndim - 1)) * (c - u)
        if halves.guidance.rescale:
            axes = tuple(range(1, c.ndim))
            ratio = c.std(axes, keepdims=True) / np.maximum(guided.std(axes, keepdims=True), 1e-12)
            guided = guided * (1 - halves.guidance.rescale + halves.guidance.rescale * ratio)
        return guided.astype(np.float32)

    def write(self, path: Path, precision: str, *, external: bool | None) -> Contract:
        """Write the guided graph and compare it with two evaluations of the file. Raises InputError."""
        import onnx_ir

        with tempfile.TemporaryDirectory(prefix=".guided-", dir=path.parent) as folder:
            plain = Path(folder) / path.name
            self._source.write(plain, precision, external=external)
            model = onnx_ir.load(plain)
            _Surgery(model, self._source.contract, self.contract, self._halves).run()
            save_model(model, path, external=external)
        if self.contract.precision != "bf16":  # no CPU kernels for that
            check_export(path, replace(self.contract, precision="fp32"), self.evaluate)
        return self.contract


def _repeated(x: Array, t: Array, conditions: Sequence[Array], times: int) -> TrialInputs:
    def twice(value: Array) -> Array:
        return np.concatenate([value] * times) if value.ndim else value

    return TrialInputs(twice(x), twice(t), tuple(map(twice, conditions)))


@final
class _Surgery:
    """The rewriting of one model in place."""

    def __init__(self, model: onnx_ir.Model, plain: Contract, guided: Contract, halves: Halves) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 13)
        self.plain, self.guided, self.halves = plain, guided, halves
        self.batch: int | str = guided.fixed_batch or "batch"
        self.nodes: list[onnx_ir.Node] = []
        self.made = 0

    def run(self) -> None:
        import onnx_ir

        graph, plain = self.graph, self.plain
        inputs = {value.name: value for value in graph.inputs}
        first = next(iter(graph))
        # Values inside hold 2 x batch samples; whoever reads the graph infers their shapes anew.
        for node in graph.all_nodes():
            for value in node.outputs:
                if value not in graph.outputs:
                    value.shape = None
        extra = {
            one.name: self._input(one.name, inputs[name], one.shape)
            for name, one in zip(
                (name for name, value in self.halves.values.items() if isinstance(value, str)),
                self.guided.conditions[len(plain.conditions) : -1],
                strict=True,
            )
        }
        scale = self._input(NAME, None, ())
        graph.inputs.extend([*extra.values(), scale])
        # Before the network.
        self._double(inputs[plain.input], None)
        if plain.time_rank:
            self._double(inputs[plain.time], None)
        for name, value in self.halves.values.items():
            self._double(inputs[name], extra[value] if isinstance(value, str) else value)
        for name in (plain.input, plain.time, *self.halves.values):
            value = inputs[name]
            value.shape = self._shape(value.shape)
        graph.insert_before(first, self.nodes)
        # Behind it.
        self.nodes = []
        out = graph.outputs[0]
        assert out.name is not None
        dtype = out.dtype or onnx_ir.DataType.FLOAT
        out.name, out.shape = f"{out.name}_halves", None
        guided = self._combined(self._node("Cast", [out], to=1), inputs[plain.time], scale)
        last = self._node("Cast", [guided], to=int(dtype))
        last.name, last.dtype, last.shape = plain.output, dtype, self._shape_of(plain.shape)
        graph.outputs[0] = last
        graph.extend(self.nodes)

    def _combined(self, both: onnx_ir.Value, time: onnx_ir.Value, scale: onnx_ir.Value) -> onnx_ir.Value:
        """g of the module docstring of guidance.py, float32."""
        pair = self._node("Reshape", [both, self._constant("pair", [2, -1, *self.plain.shape])])
        c, u = (self._node("Gather", [pair, self._constant(f"half_{i}", np.int64(i))], axis=0) for i in (0, 1))
        if self.halves.interval is not None:
            t = self._node("Cast", [time], to=1)
            low, high = (self._constant(f"time_{i}", np.float32(bound)) for i, bound in enumerate(self.halves.interval))
            inside = self._node("And", [self._node("GreaterOrEqual", [t, low]), self._node("LessOrEqual", [t, high])])
            scale = self._node("Where", [inside, scale, self._constant("one", np.float32(1))])
        column = self._constant("column", [-1, *[1] * len(self.plain.shape)])
        factor = self._node("Reshape", [scale, column])
        g = self._node("Add", [u, self._node("Mul", [factor, self._node("Sub", [c, u])])])
        rescale = self.halves.guidance.rescale
        if not rescale:
            return g
        least = self._constant("least", np.float32(1e-12))
        ratio = self._node("Div", [self._deviation(c), self._node("Max", [self._deviation(g), least])])
        part = self._node("Mul", [ratio, self._constant("rescale", np.float32(rescale))])
        return self._node("Mul", [g, self._node("Add", [part, self._constant("rest", np.float32(1 - rescale))])])

    def _deviation(self, x: onnx_ir.Value) -> onnx_ir.Value:
        centred = self._node("Sub", [x, self._mean(x)])
        return self._node("Sqrt", [self._mean(self._node("Mul", [centred, centred]))])

    def _mean(self, x: onnx_ir.Value) -> onnx_ir.Value:
        axes = list(range(1, len(self.plain.shape) + 1))
        if self.opset < 18:
            return self._node("ReduceMean", [x], axes=axes, keepdims=1)
        return self._node("ReduceMean", [x, self._constant("axes", axes)], keepdims=1)

    def _double(self, value: onnx_ir.Value, other: onnx_ir.Value | np.ndarray | None) -> None:
        """What the network reads as `value` becomes [value, other]; None stands for value again."""
        import onnx_ir

        users = [(use.node, use.idx) for use in value.uses()]
        if isinstance(other, np.ndarray):
            assert value.dtype is not None
            kind = onnx_ir.DataType(value.dtype).numpy()
            shape = self._node("Shape", [value])
            other = self._node("Expand", [self._constant(f"none_{value.name}", other[None].astype(kind)), shape])
        both = self._node("Concat", [value, value if other is None else other], axis=0)
        both.name = f"{value.name}_halves"
        for node, index in users:
            node.replace_input_with(index, both)

    def _input(self, name: str, like: onnx_ir.Value | None, shape: tuple[int, ...]) -> onnx_ir.Value:
        import onnx_ir

        dtype = onnx_ir.DataType.FLOAT if like is None or like.dtype is None else like.dtype
        return onnx_ir.Value(name=name, shape=self._shape_of(shape), type=onnx_ir.TensorType(dtype))

    def _shape(self, shape: Any) -> Any:
        return shape if shape is None or not len(shape) else self._shape_of(tuple(shape)[1:])

    def _shape_of(self, sample: tuple[Any, ...]) -> Any:
        import onnx_ir

        return onnx_ir.Shape([self.batch, *sample])

    def _node(self, kind: str, inputs: Sequence[onnx_ir.Value], **attributes: Any) -> onnx_ir.Value:
        import onnx_ir

        self.made += 1
        node = onnx_ir.node(kind, list(inputs), attributes, name=f"pfdiff_guidance_{self.made}_{kind}")
        self.nodes.append(node)
        node.outputs[0].name = f"{node.name}_out"
        return node.outputs[0]

    def _constant(self, name: str, value: Any) -> onnx_ir.Value:
        import onnx_ir

        full = f"pfdiff_guidance_{name}"
        held = self.graph.initializers.get(full)
        if held is not None:
            return held
        array = np.asarray(value)
        tensor = onnx_ir.tensor(array, name=full)
        constant = onnx_ir.Value(
            name=full, shape=onnx_ir.Shape(array.shape), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(constant)
        return constant
