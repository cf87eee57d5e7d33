"""A network given as an ONNX file, rewritten to the contract's names; its weights and operators stay as they are.

Only where the file differs from the contract does the graph change: names; a Cast and a Reshape of the time when the
network wants another dtype than float32 or int64, or [batch, 1]; a Slice when it also predicts a variance; a Cast
when the output's dtype is not that of x.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.contract.contract import Contract
from ...engine.errors import InputError, first_line
from ..check import LARGE_BYTES, Array, OnnxRun, TrialInputs, check_export
from ..described import Described
from ..precision.inside import check_scales
from ..to_onnx import save_model
from .onnx_roles import Roles, external_files, files_digest, find_roles, read_model

if TYPE_CHECKING:
    import onnx_ir


@final
class OnnxSource:
    """The file at `path`, its `roles`, and the `contract` of the network.onnx made from it."""

    def __init__(self, path: Path, described: Described) -> None:
        self.path = path
        model = read_model(path)
        check_scales(model, path)
        self._external = sorted(external_files(model))
        self.roles: Roles = find_roles(_with_output_shapes(model), path, described)
        roles = self.roles
        asked = described.time_dtype
        found = "int64" if roles.time.dtype in ("int64", "int32") else "float32"
        if asked not in (None, found):
            raise InputError(f"network '{path}': time_dtype {asked}, but the file takes '{roles.time}'; leave it out")
        self.contract = described.contract(
            roles.shape,
            tuple(condition for condition, _ in roles.conditions),
            time_dtype=found,
            time_rank=roles.time_rank,
            fixed_batch=roles.fixed_batch,
            precision=roles.precision,
        )

    @cached_property
    def _run(self) -> OnnxRun:
        roles = self.roles
        names = (roles.x.name, roles.time.name, *(port.name for _, port in roles.conditions))
        files = (self.path, *(self.path.parent / name for name in self._external))
        large = sum(file.stat().st_size for file in files) > LARGE_BYTES
        return OnnxRun(self.path, names, roles.output.name, large=large)

    def content(self) -> bytes:
        """sha256 of the file and of its external weights."""
        return files_digest((self.path, *(self.path.parent / name for name in self._external)))

    def evaluate(self, case: TrialInputs) -> Array:
        """The file itself on ONNX Runtime, float32 [B, *shape]; the mean half of a learned-sigma network."""
        out = self._run((case.x, case.t, *case.conditions))
        return out[:, : self.contract.shape[0]] if self.contract.learned_sigma else out

    def write(self, path: Path, precision: str, *, external: bool | None) -> Contract:
        """Write the rewritten graph, compare it with the file. Raises InputError when the precision is another."""
        if precision != self.contract.precision:
            raise InputError(
                f"network '{self.path}' holds {self.contract.precision} weights and is not converted to {precision}: "
                f"its time embedding would lose its digits; build with precision {self.contract.precision}, "
                f"or give the nn.Module"
            )
        try:
            save_model(self._rewritten(), path, external=external)
        except (InputError, OSError):
            raise
        except Exception as error:  # onnx_ir's exceptions have no common base
            reason = first_line(error)[:120]
            raise InputError(f"network '{self.path}': onnx cannot rewrite it ({reason}); export it again") from error
        if self.contract.precision == "bf16":
            return self.contract  # the same operators under new names, and no CPU kernels to run them with
        check_export(
            path, replace(self.contract, precision="fp32"), self.evaluate
        )  # same operators: no rounding to allow
        return self.contract

    def _rewritten(self) -> onnx_ir.Model:
        import onnx_ir

        model = onnx_ir.load(self.path)
        graph, roles, contract = model.graph, self.roles, self.contract
        values = {value.name: value for value in graph.inputs}
        outputs = {value.name: value for value in graph.outputs}
        out = outputs[roles.output.name]
        pairs = [(values[roles.x.name], contract.input), (values[roles.time.name], contract.time)]
        pairs += [(values[port.name], condition.name) for condition, port in roles.conditions]
        # One output, and no other value under a contract's name.
        graph.outputs[:] = [out]
        free_names(graph, [*pairs, (out, contract.output)])
        # Shapes and order of the inputs.
        batch = contract.fixed_batch or "batch"
        order = [value for value, _ in pairs]
        graph.inputs[:] = [*order, *(value for value in graph.inputs if value.name in graph.initializers)]
        order[0].shape = onnx_ir.Shape([batch, *contract.shape])
        for value, condition in zip(order[2:], contract.conditions, strict=True):
            value.shape = onnx_ir.Shape([batch, *condition.shape])
        self._fit_time(graph, order[1])
        self._fit_output(graph, out, order[0])
        graph.outputs[0].shape = onnx_ir.Shape([batch, *contract.shape])
        return model

    def _fit_time(self, graph: onnx_ir.Graph, time: onnx_ir.Value) -> None:
        import onnx_ir

        contract, dims = self.contract, self.roles.time.dims or ()
        rank = contract.time_rank
        shape = onnx_ir.Shape([contract.fixed_batch or "batch"] if rank else [])
        fed = onnx_ir.DataType.INT64 if contract.time_dtype == "int64" else onnx_ir.DataType.FLOAT
        wanted = time.dtype
        if wanted == fed and len(dims) == rank:
            time.shape = shape
            return
        fresh = onnx_ir.Value(name=contract.time, shape=shape, type=onnx_ir.TensorType(fed))
        time.name = f"{contract.time}_fitted"
        graph.inputs[1] = fresh
        nodes, last = [], fresh
        if wanted != fed:
            assert wanted is not None
            nodes.append(onnx_ir.node("Cast", [last], {"to": wanted}, name="pfdiff_time_cast"))
            last = nodes[-1].outputs[0]
            last.name = f"{contract.time}_cast"
        if len(dims) != rank:
            form = _constant(graph, f"{contract.time}_form", [-1] + [1] * (len(dims) - 1) if dims else [])
            nodes.append(onnx_ir.node("Reshape", [last, form], name="pfdiff_time_reshape"))
            last = nodes[-1].outputs[0]
        onnx_ir.convenience.replace_all_uses_with(time, last)
        last.name = time.name
        graph.insert_before(graph[0], nodes)

    def _fit_output(self, graph: onnx_ir.Graph, out: onnx_ir.Value, x: onnx_ir.Value) -> None:
        import onnx_ir

        contract = self.contract
        nodes, last = [], out
        if contract.learned_sigma:
            bounds = [
                _constant(graph, f"{contract.output}_{name}", [number])
                for name, number in (("start", 0), ("end", contract.shape[0]), ("axis", 1))
            ]
            nodes.append(onnx_ir.node("Slice", [last, *bounds], name="pfdiff_mean"))
            last = nodes[-1].outputs[0]
            last.dtype = out.dtype
        if out.dtype != x.dtype:
            assert x.dtype is not None
            if nodes:
                last.name = f"{contract.output}_mean"
            nodes.append(onnx_ir.node("Cast", [last], {"to": x.dtype}, name="pfdiff_out_cast"))
            last = nodes[-1].outputs[0]
            last.dtype = x.dtype
        if nodes:
            out.name = f"{contract.output}_raw"
            last.name = contract.output
            graph.outputs[0] = last
            graph.extend(nodes)


def _with_output_shapes(model: Any) -> Any:
    """The model with its outputs' shapes inferred where it leaves one out and inference finds it."""
    import onnx

    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        return model  # an unknown shape fits any, and the comparison afterwards decides


def free_names(graph: onnx_ir.Graph, pairs: list[tuple[onnx_ir.Value, str]]) -> None:
    """Give each value its new name; a value that bears one of these names already steps aside."""
    roles = {id(value) for value, _ in pairs}
    taken = {name for _, name in pairs}
    others = [value for node in graph.all_nodes() for value in node.outputs]
    for inner in (graph, *graph.subgraphs()):
        others += [*inner.inputs, *inner.initializers.values()]
    used = {value.name for value in others}
    for value in {id(one): one for one in others}.values():
        if value.name in taken and id(value) not in roles:
            number = 0
            while (fresh := f"{value.name}_inner{number or ''}") in used or fresh in taken:
                number += 1
            value.name = fresh
            used.add(fresh)
    for index, (value, _) in enumerate(pairs):
        value.name = f"pfdiff_role_{index}"  # first out of each other's way
    for value, name in pairs:
        value.name = name


def _constant(graph: onnx_ir.Graph, name: str, numbers: list[int]) -> onnx_ir.Value:
    import onnx_ir

    tensor = onnx_ir.tensor(np.array(numbers, dtype=np.int64), name=name)
    kind = onnx_ir.TensorType(onnx_ir.DataType.INT64)
    value = onnx_ir.Value(name=name, shape=onnx_ir.Shape([len(numbers)]), type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value
