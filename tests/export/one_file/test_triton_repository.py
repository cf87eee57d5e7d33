"""Triton's model repository: the config is read by Triton's own description, the model is fed as Triton would."""

from __future__ import annotations

import errno
import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.errors import InputError
from pfdiff.export.one_file.triton_repository import export_triton

from ...small.engine import CONTRACT, write_engine


def parsed(model: Path) -> Any:
    """config.pbtxt as a ModelConfig of Triton's client; its package would import gRPC, its description does not."""
    client = importlib.util.find_spec("tritonclient")
    if client is None:
        pytest.skip("tritonclient is missing: pip install tritonclient")
    folder = next(iter(client.submodule_search_locations or ()))
    name = "model_config_pb2"
    spec = importlib.util.spec_from_file_location(name, Path(folder, "grpc", f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    described: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(described)
    return text_format.Parse((model / "config.pbtxt").read_text(), described.ModelConfig())


def fed(session: onnxruntime.InferenceSession, config: Any, batch: int, values: dict[str, np.ndarray]) -> np.ndarray:
    """Values of Triton's own shapes, [batch, *dims], reshaped and typed as its configuration says."""
    feeds: dict[str, np.ndarray] = {}
    types = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_UINT64": np.uint64}
    for one in config.input:
        given = values[one.name]
        dims = list(one.dims)
        assert given.shape == ((batch, *dims) if config.max_batch_size else tuple(dims))
        assert (
            given.dtype
            == types[type(one).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name]
        )
        feeds[one.name] = given.reshape(batch, *one.reshape.shape) if one.HasField("reshape") else given
    return np.asarray(session.run([config.output[0].name], feeds)[0])


def test_each_program_is_a_model_that_draws_as_the_engine_does(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "small one.engine").path
    models = export_triton(engine, tmp_path / "models")
    assert [model.name for model in models] == ["small_one_nfe4", "small_one_nfe6"]
    noise = pfdiff.noise(range(8), CONTRACT.shape).numpy()
    label, shift = np.arange(8).reshape(8, 1), np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3, 1)
    for model, nfe in zip(models, (4, 6), strict=True):
        config = parsed(model)
        assert (config.name, config.backend, config.max_batch_size) == (model.name, "onnxruntime", 8)
        assert list(config.dynamic_batching.preferred_batch_size) == [8]
        session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        found = fed(session, config, 8, {"noise": noise, "label": label, "shift": shift})
        with pfdiff.load(engine, "cpu", "onnxruntime") as loaded:
            expected = loaded.sample(seeds=range(8), nfe=nfe, label=label[:, 0], shift=shift).numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
        assert list(config.output[0].dims) == list(CONTRACT.shape)


def test_seeds_in_the_place_of_noise(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "small.engine").path
    (model,) = export_triton(engine, tmp_path / "models", 4, from_seeds=True)
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    label, shift = np.zeros((8, 1), np.int64), np.zeros((8, 3, 1), np.float32)
    seeds = np.arange(8, dtype=np.uint64)
    found = fed(session, parsed(model), 8, {"seeds": seeds[:, None], "label": label, "shift": shift})
    with pfdiff.load(engine, "cpu", "onnxruntime") as loaded:
        expected = loaded.sample(seeds=seeds, nfe=4, label=label[:, 0], shift=shift).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_network_of_one_batch_size(tmp_path: Path) -> None:
    fixed = replace(CONTRACT, fixed_batch=3)
    engine = write_engine(tmp_path / "fixed.engine", contract=fixed, batch=(3,)).path
    (model,) = export_triton(engine, tmp_path / "models", 4)
    config = parsed(model)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    values = {"noise": pfdiff.noise(range(3), CONTRACT.shape).numpy(), "label": np.zeros(3, np.int64)}
    assert fed(session, config, 3, {**values, "shift": np.zeros((3, 3, 1), np.float32)}).shape == (3, *CONTRACT.shape)


def test_what_was_not_written_here_is_left_alone(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "small.engine").path
    models = tmp_path / "models"
    (models / "other").mkdir(parents=True)
    export_triton(engine, models, 4, check=False)
    export_triton(engine, models, 4, check=False)  # its own is replaced
    assert sorted(path.name for path in models.iterdir()) == ["other", "small_nfe4"]
    (models / "small_nfe6").mkdir()
    with pytest.raises(InputError, match="small_nfe6' is there and was not written by pfdiff"):
        export_triton(engine, models)
    for out in (engine, tmp_path / "a.onnx"):
        with pytest.raises(InputError, match="expected a folder for Triton's models"):
            export_triton(engine, out)
    with pytest.raises(InputError, match="nfe=5, this engine has 4, 6"):
        export_triton(engine, models, 5)


def test_a_full_disk_leaves_the_repository_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for the first model's graph, and none for the second's."""
    engine = write_engine(tmp_path / "small.engine").path
    written, written_bytes = [], Path.write_bytes

    def second_fails(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) % 2 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return written_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", second_fails)
    for repository in (tmp_path / "new" / "models", tmp_path / "old"):
        with pytest.raises(InputError, match=f"cannot write '{repository}': No space left on device; nothing was"):
            export_triton(engine, repository, check=False)
        assert {one.name for one in tmp_path.iterdir()} == {"small.engine"}
    assert len(written) == 4


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = write_engine(tmp_path / "small.engine").path
    assert main(["export", str(engine), "--triton", "-o", str(tmp_path / "models")]) == 0
    assert "2 models for Triton, small_nfe4, small_nfe6" in capsys.readouterr().out.replace("\n", " ")
