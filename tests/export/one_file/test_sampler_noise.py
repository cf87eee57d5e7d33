"""The one-file sampler from seeds: its noise has the engine's bits, its samples are those of the engine's seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import pfdiff
from pfdiff.cli import main
from pfdiff.engine import philox
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.errors import EngineFileError
from pfdiff.export.one_file.sampler_noise import Nodes, SeededNoise, _normal
from pfdiff.export.one_file.sampler_onnx import export_sampler

from ...small.engine import CONTRACT, SHAPE, write_engine
from .test_sampler_onnx import LABELS, SHIFTS, assert_same, run, tanh_nodes, with_programs, write_foreign

SEEDS = np.array([0, 3, 2**32, 2**63, 2**64 - 1], np.uint64)


def session(
    graph: Nodes, inputs: dict[str, int], outputs: dict[str, int]
) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Runs a graph's nodes alone; names and element types of inputs and outputs."""
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    given, taken = (
        [helper.make_tensor_value_info(name, kind, None) for name, kind in values.items()]
        for values in (inputs, outputs)
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, "noise", given, taken, constants), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 8
    made = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda feeds: np.asarray(made.run(None, feeds)[0])


@pytest.mark.parametrize("shape", [(1,), (3, 7), (1, 131, 70)])
def test_draws_are_numpys_bit_for_bit(shape: tuple[int, ...]) -> None:
    graph = Nodes("noise/")
    out = SeededNoise(graph, "seeds", shape).draw(graph, "draw")
    noise = session(graph, {"seeds": TensorProto.UINT64, "draw": TensorProto.INT64}, {out: TensorProto.FLOAT})
    for draw in (1, 2, 21, 2**32 - 1):
        found = noise({"seeds": SEEDS, "draw": np.array(draw)})
        expected = np.empty((len(SEEDS), int(np.prod(shape))), np.float32)
        philox.fill_numpy(expected, SEEDS, draw)
        np.testing.assert_array_equal(found, expected.reshape(-1, *shape))


def test_box_muller_at_the_edges_of_its_branches() -> None:
    """Words around every power of two, sqrt(2) times it, and the quarter turns."""
    powers = np.arange(32, dtype=np.float64)
    around = np.concatenate([2**powers, 2 ** (powers + 0.5), 2.0**32 - 2**powers])
    near = np.add.outer(around, [-300, -2, -1, -0.5, 0, 0.5, 1, 2, 300])
    r_0 = np.unique(np.clip(near, 0, 2**32 - 1)).astype(np.int64)
    turns = np.add.outer(np.arange(9) * 2**29, np.arange(-2, 3)).ravel()
    r_1 = np.clip(turns, 0, 2**32 - 1).astype(np.int64)
    words = [one.ravel() for one in np.meshgrid(r_0, r_1)]
    graph = Nodes("noise/")
    out = _normal(graph, "r_0", "r_1")
    noise = session(graph, {"r_0": TensorProto.INT64, "r_1": TensorProto.INT64}, {out: TensorProto.FLOAT})
    found = noise(dict(zip(("r_0", "r_1"), words, strict=True)))
    expected = np.empty(words[0].shape, np.float32)
    philox._box_muller_in_float32(expected, *(one.astype(np.uint64) for one in words))
    assert found.shape[0] > 20_000
    np.testing.assert_array_equal(found, expected)


def test_the_start_is_rounded_from_float64_once() -> None:
    """The logarithm is ONNX Runtime's: within one float32 of NumPy's, and nearly always equal."""
    graph = Nodes("noise/")
    out = SeededNoise(graph, "seeds", (40_000,)).start(graph)
    found = session(graph, {"seeds": TensorProto.UINT64}, {out: TensorProto.FLOAT})({"seeds": SEEDS})
    expected = np.empty((len(SEEDS), 40_000), np.float32)
    philox.fill_numpy(expected, SEEDS)
    assert np.mean(found != expected) < 1e-4
    np.testing.assert_array_max_ulp(found, expected, maxulp=1)


@pytest.mark.parametrize("solver", ["pfdiff:k=2,l=1", "ddpm", "dpm++:3m-sde", "lcm"])
def test_samples_are_those_of_the_engines_seeds(tmp_path: Path, solver: str) -> None:
    artifact = with_programs(write_engine(tmp_path / "small.engine"), solver=solver)
    path = export_sampler(artifact.path, tmp_path / "s.onnx", from_seeds=True)
    seeds = np.array([7, 2**64 - 1, 7], np.uint64)
    feeds: dict[str, Any] = {"label": LABELS, "shift": SHIFTS}
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        expected = np.asarray(engine.sample(seeds=seeds, **feeds))
    found = run(path, seeds=seeds, **feeds)
    assert_same(found, expected)
    alone = run(path, seeds=seeds[1:2], label=LABELS[1:2], shift=SHIFTS[1:2])
    assert_same(alone[0], found[1], 1e-6)  # a seed is one image
    onnx.checker.check_model(str(path), full_check=True)


def test_a_fixed_batch_and_pixels(tmp_path: Path) -> None:
    contract = replace(CONTRACT, fixed_batch=3)
    artifact = write_engine(tmp_path / "small.engine", contract=contract, batch=(3,), nfe=(4,))
    path = export_sampler(artifact.path, tmp_path / "s.onnx", pixels=True, from_seeds=True)
    made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert made.get_inputs()[0].shape == [3]
    seeds = np.arange(3, dtype=np.uint64)
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        expected = np.asarray(engine.images(seeds=seeds, label=LABELS, shift=SHIFTS))
    found = np.asarray(made.run(["pixels"], {"seeds": seeds, "label": LABELS, "shift": SHIFTS})[0])
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert made.get_outputs()[0].shape == [3, *SHAPE]


def test_what_cannot_be_made_from_seeds_is_said_in_one_line(tmp_path: Path) -> None:
    contract = Contract(name="old", shape=(3, 5), schedule="linear:1000", prediction="eps")
    write_foreign(tmp_path / "old.engine", contract, tanh_nodes(), TensorProto.FLOAT, opset=17)
    with pytest.raises(EngineFileError, match=r"opset 17, noise from seeds needs 18 or newer; leave from_seeds= \("):
        export_sampler(tmp_path / "old.engine", tmp_path / "s.onnx", from_seeds=True)
    assert not list(tmp_path.glob("*.onnx*"))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = with_programs(write_engine(tmp_path / "small.engine"), solver="ddpm")
    out = tmp_path / "s.onnx"
    assert main(["export", str(artifact.path), "--from-seeds", "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith("s.onnx: 4 evaluations, ddpm")
    assert [one.name for one in onnx.load(str(out)).graph.input] == ["seeds", "label", "shift"]

    models = tmp_path / "models"
    assert main(["export", str(artifact.path), "--triton", "-o", str(models)]) == 2
    assert "ddpm draws noise on the way, which is no input of Triton's batches" in capsys.readouterr().err
    assert not models.exists()
    assert main(["export", str(artifact.path), "--triton", "--from-seeds", "-o", str(models)]) == 0
    config = (models / "small_nfe4" / "config.pbtxt").read_text()
    assert '{ name: "seeds" data_type: TYPE_UINT64 dims: [ 1 ] reshape: { shape: [ ] } }' in config
    assert '"noise"' not in config
