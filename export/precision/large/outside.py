"""A graph above 1 GiB in memory: its weights stay in their file.

A protobuf message holds at most 2 GiB, and several copies of a graph are in memory while it is rewritten. Above 1 GiB
the graph refers to its weights by absolute paths. onnx_ir maps them, type inference does not read them, and ONNX
Runtime maps them relative to their folder.

Half precision is a Cast behind each weight, which stays float32 in its file. The casts are taken as they are while
graphs are compared. Only when the graph is written are the weights rounded, one after the other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ....engine.errors import InputError
from ...to_onnx import EXTERNAL_ABOVE_BYTES, save_model

if TYPE_CHECKING:
    import onnx
    import onnx_ir

LARGEST_BYTES = (1 << 31) - (1 << 20)  # of a graph that is one protobuf message
EXTERNAL = 1  # onnx.TensorProto's, of a tensor that lies outside
FLOAT = 1  # onnx.TensorProto's float32
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HALVES = ("FLOAT16", "BFLOAT16")
FOLDER_KEY = "session.model_external_initializers_file_folder_path"  # ONNX Runtime's


def loaded(path: Path) -> onnx.ModelProto:
    """The graph, with its weights up to 1 GiB, else with weights outside."""
    import onnx

    if size_of(path) <= EXTERNAL_ABOVE_BYTES:
        return onnx.load(path)
    model = onnx.load(path, load_external_data=False)
    for tensor in _outside(model):
        place = _location(tensor)
        place.value = str((path.parent / place.value).resolve())
    return model


def size_of(path: Path) -> int:
    """Bytes of the graph and of the weights beside it, which begin with its name."""
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))


@contextlib.contextmanager
def for_a_session(model: onnx.ModelProto, options: Any) -> Iterator[None]:
    """Inside, ONNX Runtime finds the weights of the model; a packed copy of them would double the memory."""
    places = [_location(tensor) for tensor in _outside(model)]
    if not places:
        yield
        return
    before = [one.value for one in places]
    (folder,) = {str(Path(one).parent) for one in before}
    options.add_session_config_entry(FOLDER_KEY, folder)
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        for one in places:
            one.value = Path(one.value).name
        yield
    finally:
        for one, value in zip(places, before, strict=True):
            one.value = value


def as_inputs(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Float32 weights outside become inputs of the graph, so that a converter does not look for their values."""
    import onnx

    held = [one for one in _outside(model) if one.data_type == FLOAT]
    found: dict[str, onnx.TensorProto] = {}
    for tensor in held:
        found[tensor.name] = copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        model.graph.initializer.remove(tensor)
    taken = {one.name for one in model.graph.input}
    for name, tensor in found.items():
        if name not in taken:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, FLOAT, tensor.dims))
    return found


def put_back(graph: onnx_ir.Graph, weights: dict[str, onnx.TensorProto]) -> None:
    """The inputs that stand for weights are initializers again."""
    import onnx_ir

    for value in [one for one in graph.inputs if one.name in weights]:
        graph.inputs.remove(value)
        value.const_value = onnx_ir.from_proto(weights[value.name or ""])
        graph.register_initializer(value)


def write(model: onnx.ModelProto, path: Path) -> None:
    """The graph at `path`, in place of what is there; weights outside are rounded where a Cast follows."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    read = onnx_ir.from_proto(model)
    for node in list(read.graph):
        if node.op_type != "Cast" or (source := node.inputs[0]) is None:
            continue
        held, dtype = source.const_value, onnx_ir.DataType(node.attributes["to"].as_int())
        if not isinstance(held, onnx_ir.ExternalTensor) or dtype.name not in HALVES:
            continue
        make = partial(_rounded, held, dtype)
        name = f"{source.name}_{dtype.name.lower()}"
        lazy = onnx_ir.LazyTensor(make, dtype=dtype, shape=onnx_ir.Shape(held.shape), name=name)
        value = onnx_ir.Value(name=name, shape=lazy.shape, type=onnx_ir.TensorType(dtype), const_value=lazy)
        if name not in read.graph.initializers:
            read.graph.register_initializer(value)
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], read.graph.initializers[name])
    RemoveUnusedNodesPass()(read)
    save_model(read, path)


def _rounded(held: onnx_ir.ExternalTensor, dtype: onnx_ir.DataType) -> onnx_ir.TensorProtocol:
    import onnx_ir

    form = held.shape.numpy()
    exact = np.fromfile(held.path, "<f4", math.prod(form), offset=held.offset or 0)  # a map would stay open
    return onnx_ir.tensor(exact.astype(dtype.numpy()).reshape(form), dtype=dtype, name=held.name)


def check_eight_bits(graph: onnx_ir.Graph, names: set[str]) -> None:
    """Raises InputError when weights of these names pass 2 GiB in eight bits, which are held in the graph."""
    values = (graph.initializers[name].const_value for name in names)
    held = sum(math.prod(one.shape.numpy()) for one in values if one is not None)
    if held > LARGEST_BYTES:
        raise _too_large(held)


def check_module(module: nn.Module) -> None:
    """Raises InputError, before anything is exported, where no choice of layers could be below 2 GiB in eight bits.

    Layers that only see the time, or are small, stay in floating point: half of the weights are left to them.
    """
    held = sum(one.weight.numel() for one in module.modules() if isinstance(one, LAYERS))
    if held > 2 * LARGEST_BYTES:
        raise _too_large(held)


def _too_large(held: int) -> InputError:
    return InputError(
        f"the weights have {held / 2**30:.1f} GiB in eight bits, and a graph to measure in memory holds at most 2; "
        "build with bf16 or fp16"
    )


def _outside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [one for one in model.graph.initializer if one.data_location == EXTERNAL]


def _location(tensor: onnx.TensorProto) -> onnx.StringStringEntryProto:
    return next(one for one in tensor.external_data if one.key == "location")
