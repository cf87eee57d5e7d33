"""Which files beside an ONNX file hold its weights, without reading the weights themselves."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import onnx

MARK = b"location"  # the key under which a tensor names its file
LARGEST_BYTES = (1 << 31) - 1  # of a protobuf message


def external_weights(file: BinaryIO) -> set[str] | None:
    """The files that the open ONNX file names; None where it names some and is damaged.

    Most networks have all weights inside. That is seen by a search for the key, and onnx is not imported.
    """
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(MARK) < 0:
                return set()
            if len(content) > LARGEST_BYTES:
                return None
    except ValueError:  # an empty file cannot be mapped
        return set()
    import onnx
    from google.protobuf.message import DecodeError

    file.seek(0)
    try:
        model = onnx.load_model_from_string(file.read(), format="protobuf")
    except (DecodeError, UnicodeDecodeError):
        return None
    return {entry.value for tensor in tensors_of(model) for entry in tensor.external_data if entry.key == "location"}


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: of its graph, the graphs inside, its functions and what training would need."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
        yield from _of_attributes(function.attribute_proto)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):  # an unset message names nothing
            yield from (sparse.values, sparse.indices)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _of_graph(graph)
