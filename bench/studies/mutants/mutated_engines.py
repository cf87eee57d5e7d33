"""Damaged engines and ONNX files, and what all kinds of `mutated_inputs` share: a small network, a small engine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

import pfdiff
from pfdiff.engine.artifact import Artifact, records_of, write_manifest
from pfdiff.engine.compiler.compile import compile as compile_program
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import Contract

from .mutators import of_bytes, of_json

SHAPE = (2, 4, 4)
CONDITIONS = (
    Condition("label", "int64", default=0, low=0, high=9, labels=("zero", "one", "two")),
    Condition("shift", "float32", (4, 1), default=0.0),
)
CONTRACT = Contract(name="tiny", shape=SHAPE, schedule="linear:1000", prediction="eps", conditions=CONDITIONS)


def write_network(path: Path) -> None:
    """out = tanh(w x) + 0.001 t + 0.05 label + shift, as an ONNX file with an open batch."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    ins = {"x": (1, SHAPE), "t": (1, ()), "label": (TensorProto.INT64, ()), "shift": (1, (4, 1))}
    constants = {
        "w": np.full(SHAPE, 0.7, np.float32),
        "late": np.float32(0.001),
        "each": np.float32(0.05),
        "column": np.array([-1, 1, 1, 1]),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["wx"]),
        helper.make_node("Tanh", ["wx"], ["a"]),
        helper.make_node("Reshape", ["t", "column"], ["t4"]),
        helper.make_node("Mul", ["t4", "late"], ["b"]),
        helper.make_node("Cast", ["label"], ["label_float"], to=1),
        helper.make_node("Reshape", ["label_float", "column"], ["label4"]),
        helper.make_node("Mul", ["label4", "each"], ["c"]),
        helper.make_node("Unsqueeze", ["shift", "axis"], ["d"]),
        helper.make_node("Sum", ["a", "b", "c", "d"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, (kind, shape) in ins.items()],
        [helper.make_tensor_value_info("out", 1, ["batch", *SHAPE])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_engine(folder: Path) -> Artifact:
    folder.mkdir()
    write_network(folder / "network.onnx")
    programs = {nfe: compile_program("pfdiff:k=2,l=1", CONTRACT.schedule, nfe, "logsnr") for nfe in (3, 4)}
    artifact = Artifact(folder, CONTRACT, (1, 4), "fp32", programs, {"network": "tiny"}, records_of(folder))
    write_manifest(artifact)
    return artifact


def signed(content: Any) -> bytes:
    """A manifest with the digest that its writer would have given it, where JSON has one."""
    if isinstance(content, dict):
        rest = {key: value for key, value in content.items() if key != "digest"}
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
            content = {**rest, "digest": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(content).encode()


class Kind(ABC):
    """One kind of input: `count` cases of it in a whole run."""

    count: ClassVar[int] = 500

    def __init__(self, folder: Path) -> None:
        """Make the valid input, in an empty folder."""
        self.folder = folder

    @abstractmethod
    def damage(self, draw: random.Random) -> None:
        """Put a damaged input in the place of the valid one, or of the one before."""

    @abstractmethod
    def use(self) -> bool:
        """Read and use it. Whether what comes of it is finite."""


def _samples_finite(engine: Path) -> bool:
    with pfdiff.load(engine, "cpu", "onnxruntime", threads=1) as loaded:
        given = loaded.contract.stand_ins
        return all(bool(loaded.sample(seeds=[1, 2], nfe=nfe, **given).isfinite().all()) for nfe in loaded.programs)


@final
class Engines(Kind):
    """engine.json: its data, mostly with the right digest, or its bytes."""

    count = 5000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.text = (write_engine(folder / "e").path / "engine.json").read_bytes()

    def damage(self, draw: random.Random) -> None:
        data = self.text
        if draw.random() < 0.85:
            changed = of_json(draw, json.loads(data))
            data = signed(changed) if draw.random() < 0.9 else json.dumps(changed).encode()
        else:
            data = of_bytes(draw, data)
        (self.folder / "e" / "engine.json").write_bytes(data)

    def use(self) -> bool:
        return _samples_finite(self.folder / "e")


@final
class OnnxFiles(Kind):
    """An ONNX file: in an engine with its right hash, and every other time given to `Network` and built."""

    count = 1000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.artifact = write_engine(folder / "e")
        self.data = (folder / "e" / "network.onnx").read_bytes()
        self.builds = False

    def damage(self, draw: random.Random) -> None:
        self.builds = draw.random() < 0.5
        data = self._other_message(draw) if draw.random() < 0.4 else of_bytes(draw, self.data)
        (self.folder / "e" / "network.onnx").write_bytes(data)
        artifact = Artifact(
            self.artifact.path, CONTRACT, (1, 4), "fp32", self.artifact.programs, {}, records_of(self.artifact.path)
        )
        write_manifest(artifact)

    def _other_message(self, draw: random.Random) -> bytes:
        """A message that protobuf reads and no network should be."""
        import onnx

        model = onnx.ModelProto.FromString(self.data)
        tensor = draw.choice(model.graph.initializer)
        node = draw.choice(model.graph.node)
        value = draw.choice([*model.graph.input, *model.graph.output])
        match draw.randrange(8):
            case 0:
                tensor.dims[:] = [draw.choice((0, -1, 1 << 40, 1 << 62, 7))] * draw.choice((1, 2, 9))
            case 1:
                tensor.data_type = draw.choice((0, 2, 7, 8, 16, 99))
            case 2:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, one in (
                    ("location", draw.choice(("/etc/passwd", "../x", "network.onnx", "", "\x1b[2J"))),
                    ("offset", "abc"),
                ):
                    tensor.external_data.add(key=key, value=one)
            case 3:
                node.op_type = draw.choice(("Loop", "If", "Conv", "NoSuch", "", "MatMul"))
            case 4:
                node.input[:] = [draw.choice(("x", "t", "none", "out", ""))] * draw.choice((1, 2, 5))
            case 5:
                value.type.tensor_type.elem_type = draw.choice((0, 7, 8, 11, 99))
            case 6:
                for one in value.type.tensor_type.shape.dim:
                    one.dim_value = draw.choice((0, -5, 3, 1 << 40))
            case _:
                value.name = draw.choice(("", "x", "out", "seeds", "a b", "\x1b[2J", "y" * 3000))
        return model.SerializeToString()

    def use(self) -> bool:
        if not self.builds:
            return _samples_finite(self.folder / "e")
        network = pfdiff.Network(self.folder / "e" / "network.onnx", schedule="linear:1000", prediction="eps")
        out = self.folder / "built.engine"
        with pfdiff.build(network, 2, "ddim", grid="uniform", backend="onnxruntime", device="cpu", out=out) as engine:
            return bool(engine.sample(seeds=[1], nfe=2, **engine.contract.stand_ins).isfinite().all())
