"""A float32 graph in fp16 or bf16, mixed: what must stay float32 does, by rule and by running both graphs.

The casting is `onnxruntime.transformers.float16`: it comes with ONNX Runtime, which is installed anyway, and is
released with it. onnxconverter-common has the older state of the same file. ModelOpt's AutoCast finds mixed graphs by
itself, but its `onnx` extra brings 19 packages, among them a second ONNX Runtime that overwrites the first. What the
converter leaves to do is here: values that both sides of a cast share are not rounded on the way, constants are rounded
once from the original, bfloat16 takes the place of float16.

Layer by layer: both graphs run on the inputs that the sampler feeds the network. A node whose float16 output is not
finite, or whose relative error exceeds `JUMP` times that of its inputs, stays float32, as do its like in later rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from ...engine.contract.contract import AnyContract, Contract
from ...engine.errors import InputError, first_line
from ..check import EPSILON, TrialInputs
from .float32_parts import captured_as_float32, float32_by_rule, out_of_range
from .large.outside import as_inputs, put_back
from .observe import GraphRun, float_tensors, largest_values
from .trajectory import Array, relative_error

if TYPE_CHECKING:
    import onnx
    import onnx_ir

ROUNDS = 4  # of finding nodes that the numbers want in float32
JUMP = 8.0  # a node's relative error beyond so many times its inputs' and so many roundings is its own doing
SUFFIX = "_float32_part"
ROUNDING = ("QuantizeLinear", "DequantizeLinear")  # a value on the edge of a step may fall to either side


@final
@dataclass(frozen=True, eq=False)
class Half:
    """The converted graph, the names of nodes kept float32, nodes in all, and the relative error of an evaluation."""

    model: onnx.ModelProto
    kept: frozenset[str]
    nodes: int
    error: float


def convert(model: onnx.ModelProto, contract: AnyContract, precision: str, cases: Sequence[TrialInputs]) -> Half:
    """The float32 `model` with x, out and weights in `precision` (fp16, bf16).

    The time and other inputs keep their dtypes. Raises InputError where a graph cannot be converted, or its output is
    not finite.
    """
    model = prepared(model)
    graph = _graph(model)
    opset = graph.opset_imports.get("", 1)
    kept = float32_by_rule(graph, contract.time if isinstance(contract, Contract) else "", opset)
    names = float_tensors(model)
    if precision == "bf16":  # OpenVINO 2026.4 makes NaN of Q/DQ nodes whose scales are bfloat16
        kept |= {node.name for node in graph if node.op_type in ROUNDING and node.name}
    if precision == "fp16":
        largest = largest_values(model, contract.inputs, names, cases)
        kept |= out_of_range(graph, largest)
    float_run = GraphRun(model, contract.inputs, names)
    best: Half | None = None
    for _ in range(ROUNDS):
        found = _cast(model, contract, precision, kept)
        error, suspects = _compared(found, float_run, model, contract, precision, cases)
        if best is None or error < best.error:
            best = Half(found, frozenset(kept), len(graph), error)
        if suspects <= kept:
            break
        kept |= suspects
    assert best is not None
    if not np.isfinite(best.error):
        raise InputError(
            f"network '{contract.name}': it is not finite in {precision} on the sampler's own inputs, also with "
            f"{len(best.kept)} of {best.nodes} nodes in float32; build with bf16 or fp32"
        )
    return best


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with a name for every node, constants as initializers, and inferred types. Raises InputError."""
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    read = onnx_ir.from_proto(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(read)
    taken = {node.name for node in read.graph if node.name}
    seen: set[str] = set()
    for number, node in enumerate(read.graph):
        if not node.name or node.name in seen:
            node.name = next(name for name in _fresh(f"node_{number}") if name not in taken)
        seen.add(node.name)
        taken.add(node.name)
    try:
        return onnx.shape_inference.infer_shapes(onnx_ir.to_proto(read))
    except Exception as error:  # of protobuf and of the inference itself
        raise InputError(
            f"the graph's dtypes cannot be inferred ({first_line(error)[:160]}); export it again"
        ) from error


def _fresh(stem: str) -> Iterator[str]:
    yield stem
    number = 0
    while True:
        number += 1
        yield f"{stem}_{number}"


def _graph(model: onnx.ModelProto) -> onnx_ir.Graph:
    import onnx_ir

    return onnx_ir.from_proto(model).graph


# Casting.
def _cast(model: onnx.ModelProto, contract: AnyContract, precision: str, kept: set[str]) -> onnx.ModelProto:
    import onnx
    from onnxruntime.transformers import float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = set(kept)
    captured_as_float32(copy, kept)
    _own_constants(copy, kept)
    original = _copied(copy)
    weights = as_inputs(copy)
    stays = [one.name for one in copy.graph.input if one.name != contract.input]
    logging.getLogger(float16.__name__).setLevel(logging.ERROR)
    try:
        cast = float16.convert_float_to_float16(
            copy,
            keep_io_types=stays,  # pyright: ignore[reportArgumentType]  # its docstring takes a list of names
            op_block_list=[],
            node_block_list=sorted(kept),
            disable_shape_infer=True,
        )
    except Exception as error:  # the converter raises whatever an unusual graph leads it to
        raise InputError(
            f"network '{contract.name}' cannot be converted to {precision} ({first_line(error)[:160]}); "
            "build with fp32, or give the nn.Module"
        ) from error
    return _tidied(cast, original, weights, precision)


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _own_constants(model: onnx.ModelProto, kept: set[str]) -> None:
    """Float32 constants of float32 nodes that others read too get a copy, which is not rounded."""
    floats = {one.name: one for one in model.graph.initializer if one.data_type == 1 and not one.data_location}
    others = {name for node in model.graph.node if node.name not in kept for name in node.input if name in floats}
    made: set[str] = set()
    for node in model.graph.node:
        if node.name not in kept:
            continue
        for index, name in enumerate(node.input):
            if name in others:
                if name not in made:
                    fresh = model.graph.initializer.add()
                    fresh.CopyFrom(floats[name])
                    fresh.name = name + SUFFIX
                    made.add(name)
                node.input[index] = name + SUFFIX


def _tidied(
    model: onnx.ModelProto, original: onnx.ModelProto, weights: dict[str, onnx.TensorProto], precision: str
) -> onnx.ModelProto:
    """Constants rounded from the original, casts there and back removed, bfloat16 for float16, in order."""
    import ml_dtypes
    import onnx
    import onnx_ir
    from onnx import numpy_helper
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    read = onnx_ir.from_proto(model)
    graph = read.graph
    half = onnx_ir.DataType.FLOAT16 if precision == "fp16" else onnx_ir.DataType.BFLOAT16
    numbers = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    constants = {one.name: one for one in original.graph.initializer}
    held = {(node.name, one.name): one.t for node in original.graph.node for one in node.attribute if one.HasField("t")}
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == onnx_ir.DataType.FLOAT16:
            exact = numpy_helper.to_array(constants[name])
            with np.errstate(over="ignore"):  # what overflows is of nodes that stay float32, as are their constants
                value.const_value = onnx_ir.tensor(exact.astype(numbers), dtype=half, name=name)
            value.dtype = half
    for node in graph:
        target = node.attributes.get("to") if node.op_type == "Cast" else node.attributes.get("dtype")
        for name, one in list(node.attributes.items()):
            if one.type.name == "TENSOR" and one.as_tensor().dtype == onnx_ir.DataType.FLOAT16:
                exact = numpy_helper.to_array(held[node.name or "", name])
                node.attributes[name] = onnx_ir.AttrTensor(name, onnx_ir.tensor(exact.astype(numbers), dtype=half))
        if target is not None and target.as_int() == int(onnx_ir.DataType.FLOAT16):
            node.attributes[target.name] = onnx_ir.AttrInt64(target.name, int(half))
    for value in (*graph.inputs, *graph.outputs, *(one for node in graph for one in node.outputs)):
        if value.dtype == onnx_ir.DataType.FLOAT16:
            value.dtype = half
    graph.sort()
    put_back(graph, weights)
    _join_casts(graph)
    RemoveUnusedNodesPass()(read)
    found = onnx_ir.to_proto(read)
    del found.graph.value_info[:]  # the converter's, of what is joined now
    return onnx.shape_inference.infer_shapes(found)


def _join_casts(graph: onnx_ir.Graph) -> None:
    """A value cast to half precision and back to float32 is taken as it was, and so is a float32 constant."""
    import onnx_ir

    for node in graph:
        if node.op_type != "Cast" or node.attributes["to"].as_int() != int(onnx_ir.DataType.FLOAT):
            continue
        value = node.inputs[0]
        if value is not None and value.const_value is not None and value.const_value.dtype == onnx_ir.DataType.FLOAT:
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], value)
            continue
        before = value.producer() if value is not None else None
        if before is None or before.op_type != "Cast" or before.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        source = before.inputs[0]
        if source.dtype == onnx_ir.DataType.FLOAT:
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], source)


# Comparing.
def _compared(
    model: onnx.ModelProto,
    float_run: GraphRun,
    plain: onnx.ModelProto,
    contract: AnyContract,
    precision: str,
    cases: Sequence[TrialInputs],
) -> tuple[float, set[str]]:
    """(relative error of the output, names of nodes whose error is their own doing)."""
    held = {name for node in model.graph.node for name in node.output}
    both = [name for name in float_run.outputs if name in held]
    run = GraphRun(rounded(model) if precision == "bf16" else model, contract.inputs, both, exact=True)
    squares: dict[str, float] = {}
    found: list[Array] = []
    wanted: list[Array] = []
    for case in cases:
        short, exact = _squared(run, float_run, case, contract.output, squares)
        found.append(short)
        wanted.append(exact)
    epsilon = EPSILON[precision]
    suspects = set[str]()
    for node in plain.graph.node:
        if node.op_type in ROUNDING:
            continue
        before = max((squares.get(name, 0.0) for name in node.input), default=0.0)
        after = max((squares.get(name, 0.0) for name in node.output), default=0.0)
        if np.isfinite(before) and after > JUMP * (before + epsilon):
            suspects.add(node.name)
    return relative_error(found, wanted), suspects


def _squared(
    run: GraphRun, float_run: GraphRun, case: TrialInputs, output: str, squares: dict[str, float]
) -> tuple[Array, Array]:
    """Both outputs; of every tensor the relative error, if larger, into `squares`. The tensors are freed at its end."""
    exact, short = float_run(case), run(case)
    for name, value in exact.items():
        if value.dtype.kind != "f" or name not in short:
            continue
        with np.errstate(all="ignore"):
            scale = float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) or 1.0
            error = float(np.sqrt(np.mean(np.square(short[name].astype(np.float64) - value)))) / scale
        squares[name] = max(squares.get(name, 0.0), np.inf if np.isnan(error) else error)
    return short[output], exact[output]


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A bfloat16 graph as a CPU without such arithmetic can run it: float32, each result rounded to bfloat16."""
    from onnx import TensorProto, helper, numpy_helper

    copy = _copied(model)
    short = TensorProto.BFLOAT16
    halves = {one.name for one in copy.graph.value_info if one.type.tensor_type.elem_type == short}
    halves |= {one.name for one in copy.graph.output if one.type.tensor_type.elem_type == short}
    del copy.graph.value_info[:]
    for tensor in copy.graph.initializer:
        if tensor.data_type == short:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == short:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        after: list[onnx.NodeProto] = []
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == short:
                attribute.i = TensorProto.FLOAT
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = f"{name}_unrounded"
                after.append(helper.make_node("Cast", [f"{name}_unrounded"], [f"{name}_short"], to=short))
                after.append(helper.make_node("Cast", [f"{name}_short"], [name], to=TensorProto.FLOAT))
        nodes += [node, *after]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
