"""Loops that may never end: refused before anything evaluates them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pfdiff.engine.api import Engine
from pfdiff.engine.artifact import records_of, write_manifest
from pfdiff.engine.errors import EngineFileError, InputError
from pfdiff.engine.files.loops import endless_loop, names_loop
from pfdiff.export.network import Network

from ...small.engine import SHAPE, write_engine


def network(turns: str, *nodes: NodeProto, inner: int | None = None) -> ModelProto:
    """x halved `turns` times; the condition goes on for ever. inner: turns of a loop inside."""

    def body(name: str, step: list[NodeProto]) -> onnx.GraphProto:
        ends = [helper.make_tensor_value_info(f"{name}_n", TensorProto.INT64, [])]
        ends += [helper.make_tensor_value_info(f"{name}_go", TensorProto.BOOL, [])]
        x = helper.make_tensor_value_info(f"{name}_x", TensorProto.FLOAT, None)
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph(step, name, [*ends, x], [ends[1], out])

    step = helper.make_node("Mul", ["outer_x", "half"], ["outer_out"])
    if inner is not None:
        again = body("again", [helper.make_node("Mul", ["again_x", "half"], ["again_out"])])
        step = helper.make_node("Loop", ["inner", "true", "outer_x"], ["outer_out"], "inner loop", body=again)
    main = helper.make_node("Loop", [turns, "true", "x"], ["out"], "my loop", body=body("outer", [step]))
    shape = ["n", *SHAPE]
    held = {"true": np.array(True), "half": np.float32(0.5), "three": np.int64(3), "many": np.int64(1 << 40)}
    held["one"], held["inner"] = np.array([1], np.int64), np.int64(inner or 0)
    graph = helper.make_graph(
        [*nodes, main],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n"]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


CONSTANT = helper.make_node("Constant", [], ["five"], value_int=5)
SIZE = helper.make_node("Size", ["x"], ["size"])


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (network("three"), None),
        (network("one"), None),
        (network("five", CONSTANT), None),
        (network("three", inner=20_000), None),
        (network(""), "its Loop 'my loop' has no constant number of turns, so it may never end"),
        (network("size", SIZE), "its Loop 'my loop' has no constant number of turns, so it may never end"),
        (network("many"), "its Loop 'my loop' turns 1,099,511,627,776 times, more than 65,536 here"),
        (network("three", inner=30_000), "its Loop 'inner loop' turns 30,000 times, more than 21,845 here"),
    ],
)
def test_only_a_small_constant_number_of_turns_ends(model: ModelProto, line: str | None) -> None:
    onnx.checker.check_model(model)
    assert endless_loop(model) == line


@pytest.mark.parametrize("length", [b"\x04", b"\x84\x00", b"\x84\x80\x00"])
def test_the_name_is_found_in_every_encoding_of_its_length(length: bytes) -> None:
    assert names_loop(b"weights: Loop, Loop. \x22" + length + b"Loop\x2a")
    assert not names_loop(b"Loop, weights: Loop, Loop")


def test_an_endless_network_is_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    onnx.save(network(""), tmp_path / "n.onnx")
    with pytest.raises(InputError, match="may never end; export it with a fixed number of turns"):
        Network(tmp_path / "n.onnx", schedule="vp", prediction="eps")
    artifact = write_engine(tmp_path / "e")
    onnx.save(network(""), artifact.network_path)
    write_manifest(replace(artifact, files=records_of(artifact.path)))
    with pytest.raises(EngineFileError, match="may never end; build the engine of a network that ends"):
        Engine.open(artifact.path)
    assert time.monotonic() - start < 5
