"""Bulk runs of small engines: what the tests of `pfdiff.generate` share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

import pfdiff
from pfdiff.engine.artifact import records_of, write_manifest
from pfdiff.engine.bulk import generate as bulk
from pfdiff.engine.contract.contract import DecoderContract

from .engine import CONTRACT, SHAPE, write_engine

COUNT, SIZE = 25, 7  # the last shard has 4 samples
NAMES = [f"shard-{index:06d}.npz" for index in range(4)]


def run(engine: Path, out: Path, count: int = COUNT, **changed: Any) -> bulk.Generated:
    return pfdiff.generate(engine, count, out, **{"nfe": 4, "format": "npz", "shard": SIZE, **changed})


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def read_npz(folder: Path) -> dict[str, np.ndarray]:
    """All shards as one."""
    parts = [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def stop_after(shards: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= shards * SIZE:
            raise KeyboardInterrupt

    return progress


def image_engine(folder: Path) -> Path:
    """An engine whose samples are pictures of three channels."""
    path = folder / "image.engine"
    artifact = write_engine(path)
    model = onnx.load(path / "network.onnx")
    weight = onnx.numpy_helper.from_array(np.full((3, 3, 5), 0.7, np.float32), "weight")
    model.graph.initializer[0].CopyFrom(weight)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, path / "network.onnx")
    contract = pfdiff.Contract.from_dict({**CONTRACT.to_dict(), "shape": [3, 3, 5]})
    write_manifest(replace(artifact, contract=contract, files=records_of(path)))
    return path


def latent_engine(folder: Path) -> Path:
    """An engine of two channels whose decoder mixes them into three."""
    path = folder / "latent.engine"
    artifact = write_engine(path)
    weight = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2, 1, 1)
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", channels, 3, 5])
        for name, channels in (("latents", 2), ("image", 3))
    ]
    nodes = [helper.make_node("Conv", ["latents", "weight"], ["image"])]
    graph = helper.make_graph(nodes, "mix", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path / "decoder.onnx")
    decoder = DecoderContract("mix", SHAPE, (3, 3, 5))
    write_manifest(replace(artifact, files=records_of(path), decoder=decoder))
    return path
