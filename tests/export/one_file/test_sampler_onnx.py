"""The one-file sampler in plain ONNX Runtime against `engine.sample` on the same noise."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import Artifact, records_of, write_manifest
from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.errors import BackendError, EngineFileError, InputError
from pfdiff.export.one_file import sampler_onnx
from pfdiff.export.one_file.sampler_onnx import export_sampler

from ...small.engine import CONTRACT, SHAPE, program, write_engine, write_onnx

LABELS = np.array([3, 0, 9])
SHIFTS = np.random.default_rng(1).standard_normal((3, 3, 1), np.float32)


def noise(batch: int = 3, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, *shape), np.float32)


def run(path: Path, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["samples"], feeds)[0])


def assert_same(actual: np.ndarray, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    assert np.abs(actual - expected).max() <= tolerance * max(1, np.abs(expected).max())


def with_programs(artifact: Artifact, **settings: Any) -> Artifact:
    changed = replace(artifact, programs={4: program(4, artifact.contract, **settings)})
    write_manifest(changed)
    return changed


@pytest.mark.parametrize("solver", ["ddim", "ddim:eps=own", "pfdiff:k=2,l=1", "dpm++:2m", "dpm-solver:order=2"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_equals_the_engine(tmp_path: Path, solver: str, clip: float | None) -> None:
    artifact = with_programs(write_engine(tmp_path / "small.engine"), solver=solver, clip=clip)
    path = export_sampler(artifact.path, tmp_path / "s.onnx", check=False)
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        expected = engine.sample(noise=noise(), label=LABELS, shift=SHIFTS)
    assert_same(run(path, noise=noise(), label=LABELS, shift=SHIFTS), expected)
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("solver", ["ddpm", "tcd:gamma=0.5", "dpm++:2m-sde", "sa"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_draws_are_an_input(tmp_path: Path, solver: str, clip: float | None) -> None:
    artifact = with_programs(write_engine(tmp_path / "small.engine"), solver=solver, clip=clip)
    path = export_sampler(artifact.path, tmp_path / "s.onnx")
    xi = np.random.default_rng(2).standard_normal((artifact.programs[4].noises, 3, *SHAPE), np.float32)
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        expected = engine.sample(noise=noise(), steps_noise=xi, label=LABELS, shift=SHIFTS)
        other = engine.sample(noise=noise(), steps_noise=-xi, label=LABELS, shift=SHIFTS)
    assert np.abs(np.asarray(expected - other)).max() > 0.05
    assert_same(run(path, noise=noise(), steps_noise=xi, label=LABELS, shift=SHIFTS), expected)
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("time", ["int64", "scalar"])
def test_integer_and_scalar_times(tmp_path: Path, time: str) -> None:
    contract = replace(CONTRACT, time_dtype="int64") if time == "int64" else replace(CONTRACT, time_rank=0)
    artifact = write_engine(tmp_path / "small.engine", contract=contract)
    path = export_sampler(artifact.path, tmp_path / "s.onnx", 6)
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        expected = engine.sample(noise=noise(), nfe=6, label=LABELS, shift=SHIFTS)
    assert_same(run(path, noise=noise(), label=LABELS, shift=SHIFTS), expected)


def test_fixed_batch(tmp_path: Path) -> None:
    artifact = write_engine(tmp_path / "small.engine", contract=replace(CONTRACT, fixed_batch=3), batch=(3,), nfe=(4,))
    path = export_sampler(artifact.path, tmp_path / "s.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [3, *SHAPE]
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        expected = engine.sample(noise=noise(), label=LABELS, shift=SHIFTS)
    assert_same(run(path, noise=noise(), label=LABELS, shift=SHIFTS), expected)


def test_external_weights_move_with_the_file(tmp_path: Path) -> None:
    artifact = write_engine(tmp_path / "small.engine", external=True)
    export_sampler(artifact.path, tmp_path / "s.onnx", 4)
    weights = f"s.onnx.{artifact.files['network.onnx.data'].sha256[:12]}.data"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s.onnx", weights, "small.engine"]
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        expected = engine.sample(noise=noise(), nfe=4, label=LABELS, shift=SHIFTS)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("s.onnx", weights):
        (tmp_path / name).rename(moved / name)
    assert_same(run(moved / "s.onnx", noise=noise(), label=LABELS, shift=SHIFTS), expected)


@pytest.mark.parametrize("killed", ["before", "between", "after"])
def test_a_sampler_never_meets_the_weights_of_another(
    tmp_path: Path, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever between the renames an export ends, what is at its place is the former sampler or the new one."""
    former = write_engine(tmp_path / "small.engine", external=True)
    target = export_sampler(former.path, tmp_path / "s.onnx", 4)
    feeds = {"noise": noise(), "label": LABELS, "shift": SHIFTS}
    before = run(target, **feeds)
    other = write_engine(tmp_path / "other.engine", external=True)
    write_onnx(other.path / "network.onnx", weight=0.2, external=True)
    write_manifest(replace(other, files=records_of(other.path)))
    end, renames = {"before": 0, "between": 1, "after": 2}[killed], []
    rename = os.replace

    def dying(source: Any, place: Any) -> None:
        if len(renames) == end:
            raise KeyboardInterrupt
        renames.append(place)
        rename(source, place)

    monkeypatch.setattr(os, "replace", dying)
    with contextlib.suppress(KeyboardInterrupt):
        export_sampler(other.path, target, 4, check=False)
    monkeypatch.undo()
    after = run(target, **feeds)
    assert np.array_equal(after, before) == (killed != "after")
    export_sampler(other.path, target, 4, check=False)
    assert not np.array_equal(run(target, **feeds), before)
    assert len(list(tmp_path.iterdir())) == 4  # the former weights are gone


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    artifact = write_engine(tmp_path / "small.engine")
    left = tmp_path / ".s.onnx.building-01234567"
    left.mkdir()
    (left / "s.onnx").write_bytes(b"half")
    export_sampler(artifact.path, tmp_path / "s.onnx", 4, check=False)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s.onnx", "small.engine"]


@pytest.mark.parametrize("check", [True, False])
def test_bytes_outside_the_engine_are_not_copied(tmp_path: Path, check: bool) -> None:
    """A link in the place of weights, which the manifest does not list."""
    artifact = write_engine(tmp_path / "small.engine", external=True)
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    (artifact.path / "network.onnx.data").unlink()
    (artifact.path / "network.onnx.data").symlink_to(tmp_path / "secret")
    write_manifest(replace(artifact, files={"network.onnx": artifact.files["network.onnx"]}))
    with pytest.raises(EngineFileError, match="not among the files"):
        export_sampler(artifact.path, tmp_path / "s.onnx", 4, check=check)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["secret", "small.engine"]


def test_runs_without_pfdiff(tmp_path: Path) -> None:
    artifact = write_engine(tmp_path / "small.engine")
    export_sampler(artifact.path, tmp_path / "s.onnx", 4)
    np.savez(tmp_path / "in.npz", noise=noise(), label=LABELS, shift=SHIFTS)
    code = (
        "import sys, numpy, onnxruntime;"
        "out = onnxruntime.InferenceSession('s.onnx').run(None, dict(numpy.load('in.npz')))[0];"
        "numpy.save('out.npy', out); assert not {'pfdiff', 'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, timeout=120)
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        assert_same(np.load(tmp_path / "out.npy"), engine.sample(noise=noise(), nfe=4, label=LABELS, shift=SHIFTS))


def test_weights_stand_once(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"solver": "ddim", "grid": "uniform"}
    artifact = write_engine(tmp_path / "small.engine")
    write_manifest(replace(artifact, programs={nfe: program(nfe, **settings) for nfe in (2, 200)}))
    few, many = (export_sampler(artifact.path, tmp_path / f"{nfe}.onnx", nfe, check=False) for nfe in (2, 200))
    rows = 200 * 4 * (1 + 2)  # a time and an update of two numbers, float32
    assert many.stat().st_size - few.stat().st_size < rows + 100


# Networks of another make.
def write_foreign(folder: Path, contract: Contract, nodes: list[Any], element: int, **options: Any) -> Artifact:
    """An engine of x, t -> out with the given nodes, one program of 4 evaluations."""
    folder.mkdir()
    inputs = [
        helper.make_tensor_value_info(contract.input, element, ["batch", *contract.shape]),
        helper.make_tensor_value_info(contract.time, TensorProto.FLOAT, ["batch"]),
        *(helper.make_tensor_value_info(one.name, TensorProto.FLOAT, ["batch"]) for one in contract.conditions),
    ]
    output = helper.make_tensor_value_info(contract.output, element, ["batch", *contract.shape])
    opset = helper.make_opsetid("", options.pop("opset", 17))
    model = helper.make_model(
        helper.make_graph(nodes, "foreign", inputs, [output]), opset_imports=[opset], ir_version=8
    )
    onnx.save(model, folder / "network.onnx")
    made = compile(
        "pfdiff:k=1,l=1",
        contract.schedule,
        4,
        "karras" if contract.prediction == "edm" else "logsnr",
        prediction=contract.prediction,
        sigma_data=contract.sigma_data,
    )
    artifact = Artifact(folder, contract, (2,), contract.precision, {4: made}, {}, records_of(folder))
    write_manifest(artifact)
    return artifact


def tanh_nodes(x: str = "x", out: str = "out") -> list[Any]:
    return [helper.make_node("Tanh", [x], [out])]


def test_names_inside_and_graphs_inside_do_not_clash(tmp_path: Path) -> None:
    """A network that calls its values as the sampler does, with an If that reads names around it."""
    contract = Contract(name="foreign", shape=(3, 5), schedule="cosine:100", prediction="eps", input="S", output="z")

    def branch(name: str, operator: str) -> Any:
        out = helper.make_tensor_value_info(f"samples_{name}", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["noise"], [out.name])], name, [], [out])

    nodes = [
        helper.make_node("Identity", ["S"], ["noise"]),
        helper.make_node("Constant", [], ["limit"], value_float=50.0),
        helper.make_node("ReduceMax", ["t"], ["n"], keepdims=0),
        helper.make_node("Greater", ["n", "limit"], ["go"]),
        helper.make_node("If", ["go"], ["samples"], then_branch=branch("a", "Tanh"), else_branch=branch("b", "Sin")),
        helper.make_node("Clip", ["samples", "", "limit"], ["z"]),
    ]
    artifact = write_foreign(tmp_path / "foreign.engine", contract, nodes, TensorProto.FLOAT)
    path = export_sampler(artifact.path, tmp_path / "s.onnx")
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        assert_same(run(path, noise=noise(2, (3, 5))), engine.sample(noise=noise(2, (3, 5))))


def test_edm_networks_are_fed_the_scaled_state(tmp_path: Path) -> None:
    contract = Contract(name="raw", shape=(3, 5), schedule="edm", prediction="edm", sigma_data=0.7)
    artifact = write_foreign(tmp_path / "raw.engine", contract, tanh_nodes(), TensorProto.FLOAT)
    path = export_sampler(artifact.path, tmp_path / "s.onnx")
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        assert_same(run(path, noise=noise(2, (3, 5))), engine.sample(noise=noise(2, (3, 5))))


def test_half_precision_networks(tmp_path: Path) -> None:
    contract = Contract(name="half", shape=(3, 5), schedule="linear:1000", prediction="eps", precision="fp16")
    artifact = write_foreign(tmp_path / "half.engine", contract, tanh_nodes(), TensorProto.FLOAT16)
    path = export_sampler(artifact.path, tmp_path / "s.onnx")
    with pfdiff.load(artifact.path, backend="onnxruntime") as engine:
        assert_same(run(path, noise=noise(2, (3, 5))), engine.sample(noise=noise(2, (3, 5))), 1e-2)


# What is refused.
def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path) -> None:
    artifact = write_engine(tmp_path / "small.engine")
    with pytest.raises(InputError, match="nfe is missing and this engine has several; choose one of 4, 6"):
        export_sampler(artifact.path, tmp_path / "s.onnx")
    with pytest.raises(InputError, match="nfe=5, this engine has 4, 6"):
        export_sampler(artifact.path, tmp_path / "s.onnx", 5)
    with pytest.raises(InputError, match=r"expected a file ending in \.onnx"):
        export_sampler(artifact.path, tmp_path / "s.bin", 4)
    with pytest.raises(EngineFileError, match="does not exist"):
        export_sampler(tmp_path / "none.engine", tmp_path / "s.onnx", 4)
    contract = Contract(
        name="taken",
        shape=(3, 5),
        schedule="linear:1000",
        prediction="eps",
        conditions=(Condition("samples", "float32"),),
    )
    write_foreign(tmp_path / "taken.engine", contract, tanh_nodes(), TensorProto.FLOAT)
    with pytest.raises(InputError, match="condition 'samples'"):
        export_sampler(tmp_path / "taken.engine", tmp_path / "s.onnx")
    old = replace(contract, conditions=())
    write_foreign(tmp_path / "old.engine", old, tanh_nodes(), TensorProto.FLOAT, opset=12)
    with pytest.raises(EngineFileError, match="opset 12"):
        export_sampler(tmp_path / "old.engine", tmp_path / "s.onnx")
    assert not list(tmp_path.glob("*.onnx*"))


def test_a_sampler_that_differs_never_replaces_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = write_engine(tmp_path / "small.engine")
    (tmp_path / "s.onnx").write_bytes(b"former")
    monkeypatch.setattr(sampler_onnx, "TOLERANCE", -1.0)
    with pytest.raises(BackendError, match="differs from the engine"):
        export_sampler(artifact.path, tmp_path / "s.onnx", 4)
    assert (tmp_path / "s.onnx").read_bytes() == b"former"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s.onnx", "small.engine"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = write_engine(tmp_path / "small.engine")
    out = tmp_path / "s.onnx"
    assert main(["export", str(artifact.path), "--nfe", "4", "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith("s.onnx: 4 evaluations, pfdiff:k=2,l=1")
    first = out.read_bytes()
    assert main(["export", str(artifact.path), "--nfe", "4", "-o", str(out), "--no-check"]) == 0
    assert out.read_bytes() == first  # the same engine gives the same bytes
    capsys.readouterr()
    assert main(["export", str(artifact.path), "--nfe", "9", "-o", str(out)]) == 2
    assert capsys.readouterr().err.startswith("pfdiff: --nfe 9, this engine has 4, 6")
