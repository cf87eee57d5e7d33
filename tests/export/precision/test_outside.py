"""Above 1 GiB weights stay in their file: the graphs are those that small files get, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from pfdiff.engine.compiler.compile import compile as compile_program
from pfdiff.engine.errors import InputError
from pfdiff.export.build import build
from pfdiff.export.check import TrialInputs
from pfdiff.export.network import Network
from pfdiff.export.precision.large import outside
from pfdiff.export.precision.observe import GraphRun
from pfdiff.export.precision.write import Asked, write_network

from ...small.precision import SAMPLER, SHAPE, WORDS, Small, small_file

PROGRAMS = {2: compile_program("ddim", WORDS["schedule"], 2, prediction=WORDS["prediction"], grid=SAMPLER["grid"])}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network with its weights beside it."""
    folder = tmp_path_factory.mktemp("outside")
    path = folder / "net.onnx"
    model = onnx.load(small_file(folder))
    onnx.save(model, path, save_as_external_data=True, location="net.onnx.data", size_threshold=256)
    return path


def written(file: Path, folder: Path, precision: str) -> tuple[dict[str, int], set[bytes]]:
    """Nodes by operator and the values of all constants."""
    folder.mkdir()
    network = Network(file, **WORDS)
    made = write_network(
        network._source,
        folder / "network.onnx",
        precision,
        Asked(PROGRAMS, bound=0.05),
        lambda line: None,
        external=None,
    )
    assert made.contract.precision == ("fp32" if precision == "int8" else precision)
    assert [one.name for one in folder.iterdir()] == ["network.onnx"]
    model = onnx.load(folder / "network.onnx")
    kinds = [node.op_type for node in model.graph.node]
    return {kind: kinds.count(kind) for kind in kinds}, {
        numpy_helper.to_array(one).tobytes() for one in model.graph.initializer
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_file_is_the_same(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    wanted = written(file, tmp_path / "inside", precision)
    monkeypatch.setattr(outside, "EXTERNAL_ABOVE_BYTES", 1000)
    monkeypatch.setattr("pfdiff.export.sources.from_onnx.save_model", beside)
    found = written(file, tmp_path / "outside", precision)
    assert found == wanted


def beside(model: object, path: Path, *, external: bool | None = None) -> None:
    """What is written for a large network: weights beside the graph."""
    import onnx_ir

    assert isinstance(model, onnx_ir.Model)
    onnx_ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=256)


def test_the_graph_in_memory_holds_no_large_weight(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "EXTERNAL_ABOVE_BYTES", 1000)
    model, whole = outside.loaded(file), onnx.load(file)
    assert model.ByteSize() < whole.ByteSize() / 2
    places = [
        one.external_data[0].value for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL
    ]
    assert set(places) == {str(file.parent / "net.onnx.data")}
    names = [one.name for one in model.graph.input]
    feed = [np.random.default_rng(0).standard_normal((2, 2, 8, 8), np.float32), np.array([3, 700], np.float32)]
    case = TrialInputs(feed[0], feed[1], ())
    runs = [GraphRun(one, names)(case)["out"] for one in (model, whole)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5, atol=1e-6)
    assert [one.external_data[0].value for one in model.graph.initializer if one.data_location] == places


def test_more_than_2_gib_in_eight_bits_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "LARGEST_BYTES", 1000)
    with pytest.raises(InputError, match=r"GiB in eight bits, and a graph to measure in memory holds at most 2; build"):
        written(file, tmp_path / "refused", "int8")


def test_it_is_refused_before_anything_is_sampled_or_exported(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(*args: object, **words: object) -> None:
        raise AssertionError("what takes long has begun")

    monkeypatch.setattr(outside, "LARGEST_BYTES", 500)
    monkeypatch.setattr("pfdiff.export.precision.write.NetworkTask", long)
    with pytest.raises(InputError, match="GiB in eight bits"):
        written(file, tmp_path / "file", "int8")
    monkeypatch.setattr("pfdiff.export.sources.from_module.ModuleSource.write", long)
    given: dict[str, Any] = {**SAMPLER, "precision": "int8", "backend": "onnxruntime", "out": tmp_path / "e"}
    with pytest.raises(InputError, match="GiB in eight bits"):
        build(Network(Small(), shape=SHAPE, **WORDS), 2, **given)
    assert not (tmp_path / "e").exists()
