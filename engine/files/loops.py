"""Loops of an ONNX file that may never end.

An ONNX Loop takes its number of turns, and whether it goes on, from tensors. Only a constant number is known to end, so
a network's loops must have that.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

from ..errors import shown

if TYPE_CHECKING:
    import onnx

MOST_TURNS = 1 << 16  # of a Loop, and of the loops around it
MARK = b"Loop"
LARGEST_BYTES = (1 << 31) - 1  # of a protobuf message


def endless_loop_in(file: BinaryIO) -> str | None:
    """What `endless_loop` says of an open ONNX file; None where it is damaged, as no library runs it then.

    A network without loops is seen by a search for the operator's name, and onnx is not imported.
    """
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if len(content) > LARGEST_BYTES or not names_loop(content):
                return None
    except ValueError:  # an empty file cannot be mapped
        return None
    import onnx
    from google.protobuf.message import DecodeError

    file.seek(0)
    try:
        return endless_loop(onnx.load_model_from_string(file.read(), format="protobuf"))
    except (DecodeError, UnicodeDecodeError):
        return None


def names_loop(content: mmap.mmap | bytes) -> bool:
    """Whether the name is there with its length before it, in any encoding of that number, and not among weights."""
    at = content.find(MARK)
    while at >= 0:
        if at > 0 and content[at - 1] in (0, len(MARK)):
            return True
        at = content.find(MARK, at + 1)
    return False


def endless_loop(model: onnx.ModelProto) -> str | None:
    """One line on the first Loop whose number of turns is no constant, or too large; None when all end."""
    for nodes, held in ((model.graph.node, _constants(model.graph)), *((one.node, {}) for one in model.functions)):
        if found := next(_endless(nodes, held, MOST_TURNS), None):
            return found
    return None


def _endless(nodes: Iterable[onnx.NodeProto], known: Mapping[str, int | None], most: int) -> Iterator[str]:
    """Lines on the loops among `nodes` and inside them; most: turns that the loops around leave to these."""
    nodes = list(nodes)
    known = {**known, **{node.output[0]: _constant(node) for node in nodes if node.output}}
    for node in nodes:
        left = most
        if node.op_type == "Loop" and node.domain in ("", "ai.onnx"):
            turns = known.get(node.input[0]) if node.input and node.input[0] else None
            if turns is None:
                yield f"its Loop {shown(node.name)} has no constant number of turns, so it may never end"
            elif turns > most:
                yield f"its Loop {shown(node.name)} turns {turns:,} times, more than {most:,} here"
            left = most // max(turns or 1, 1)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                inner = {**known, **dict.fromkeys((one.name for one in graph.input), None), **_constants(graph)}
                yield from _endless(graph.node, inner, left)


def _constants(graph: onnx.GraphProto) -> dict[str, int | None]:
    """The initializers that hold one whole number."""
    return {tensor.name: _number(tensor) for tensor in graph.initializer}


def _constant(node: onnx.NodeProto) -> int | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    values = {one.name: one for one in node.attribute}
    if "value_int" in values:
        return values["value_int"].i
    return _number(values["value"].t) if "value" in values else None


def _number(tensor: onnx.TensorProto) -> int | None:
    """The int64 that a tensor of one element holds; None of any other, and where it lies in another file."""
    import onnx
    import onnx.numpy_helper

    if tensor.data_type != onnx.TensorProto.INT64 or list(tensor.dims) not in ([], [1]):
        return None
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    try:
        return int(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
    except (ValueError, IndexError):
        return None
