"""The ONNX Runtime adapter: loaded when it is asked for, of any version that has what it calls."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.artifact import Artifact, read_artifact, records_of, write_manifest
from pfdiff.engine.compiler.compile import compile

from .tree import MARKS, NATIVE, SHAPE, built, onnxruntime_root, run, write_engine

LIBRARY_PATH = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"

pytestmark = MARKS
__all__ = ["built"]  # a fixture, used by its name


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder with a library in ONNX Runtime's place, of the API asked for, under its name on Linux and macOS."""

    def build(api: int) -> Path:
        folder = tmp_path_factory.mktemp(f"api{api}")
        name = "libonnxruntime.dylib" if sys.platform == "darwin" else "libonnxruntime.so.1"
        root = onnxruntime_root()
        headers = [NATIVE / "mock"] if root is None else [root / "include", root / "include/onnxruntime"]
        includes = [word for path in headers for word in ("-isystem", path)]
        options = ["-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", f'-DMOCK_API="{api}"', *includes]
        run("c++", *options, NATIVE / "mock/onnxruntime_library.cpp", "-o", folder / name)
        return folder

    return build


def test_nothing_links_onnxruntime(built: Path):
    """So that whatever version there is at run time will do."""
    for path in (built / "pfdiff-run", *built.glob("libpfdiff_onnxruntime.*")):
        content = path.read_bytes()
        assert b"OrtGetApiBase" in content or path.name == "pfdiff-run"
        assert not re.search(rb"VERS_1\.[0-9]|\0libonnxruntime\.so\.1\.", content)
    symbols = run("nm", "-D", "--undefined-only", next(built.glob("libpfdiff_onnxruntime.*")))
    assert "dlsym" in symbols
    assert "Ort" not in symbols


def test_the_library_of_the_system_is_loaded_and_run(
    built: Path, tmp_path: Path, mock: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    engine = write_engine(tmp_path / "some.engine", "pfdiff:k=2,l=1", "linear:1000")
    program = read_artifact(engine).programs[8]
    sample = (built / "pfdiff-run", engine, "--network", "onnxruntime", "--seeds", "0-4", "-o", tmp_path / "x.npy")
    place = {LIBRARY_PATH: str(mock(18))}
    said = run(*sample, env=place)
    # Telemetry is off before the library runs at all, and everything that it made is given back.
    assert said == "mock: loaded, telemetry disabled: 1\nmock: 0 objects left\n"
    exact = program.evaluate(lambda x, t: x / 2, pfdiff.noise(range(5), SHAPE).double().numpy())
    found = np.load(tmp_path / "x.npy")
    assert np.linalg.norm(found - exact) <= 1e-5 * np.linalg.norm(exact)
    assert "telemetry disabled: 0" in run(*sample, env=place | {"ORT_DISABLE_TELEMETRY": "0"})  # the user's word holds
    for variable, words in (("MOCK_LOAD_FAILS", "load"), ("MOCK_RUN_FAILS", "run")):
        said = run(*sample, env=place | {variable: "two\nlines \x1b[2J" + "long " * 200}, status=1)
        (line,) = [one for one in said.splitlines() if not one.startswith("mock: ")]
        assert f"ONNX Runtime fails to {words} network.onnx: two lines \\x1b[2Jlong long" in line
        assert len(line) < 320
        assert "mock: 0 objects left" in said


def test_no_library_or_an_older_one_is_one_line(built: Path, tmp_path: Path, mock: Callable[[int], Path]):
    engine = write_engine(tmp_path / "some.engine", "ddim", "linear:1000")
    sample = (built / "pfdiff-run", engine, "--network", "onnxruntime", "-o", tmp_path / "x.npy")
    old = next(mock(12).iterdir())
    said = run(*sample, env={LIBRARY_PATH: str(old.parent)}, status=1).splitlines()
    assert said[0].startswith("mock: loaded")
    assert said[1] == (
        f"pfdiff-run: no ONNX Runtime of version 1.18 or newer: {old.name} is version 1.12.0; "
        "install one, or name its library in PFDIFF_ONNXRUNTIME"
    )
    # What is named is taken, and nothing in its place.
    new = next(mock(30).iterdir())
    assert "mock: loaded" in run(*sample, env={"PFDIFF_ONNXRUNTIME": str(new)})
    for other, reason in (
        (tmp_path / "none.so", "none.so"),
        (next(built.glob("libpfdiff.*")), " has no OrtGetApiBase"),
    ):
        said = run(*sample, env={"PFDIFF_ONNXRUNTIME": str(other), LIBRARY_PATH: str(new.parent)}, status=1)
        assert said.startswith("pfdiff-run: no ONNX Runtime of version 1.18 or newer: ")
        assert reason in said or "..." in said
        assert said.count("\n") == 1


def test_onnxruntime_itself_runs_what_python_runs(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if onnxruntime_root() is None:
        pytest.skip("ONNX Runtime's C header is not installed; set ONNXRUNTIME_ROOT")
    import onnxruntime
    import torch

    from ..small.engine import CONTRACT, small, write_onnx

    (wheel,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.*" + onnxruntime.__version__)
    monkeypatch.setenv("PFDIFF_ONNXRUNTIME", str(wheel))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    engine = tmp_path / "small.engine"
    engine.mkdir()
    write_onnx(engine / "network.onnx")
    program = compile("pfdiff:k=2,l=1", CONTRACT.schedule, 5, grid="logsnr")
    write_manifest(Artifact(engine, CONTRACT, (1, 4), "fp32", {5: program}, {}, records_of(engine)))
    run(
        *(built / "pfdiff-run", engine, "--network", "onnxruntime", "--seeds", "0-6"),
        *("--condition", "label=3", "--threads", 1, "-o", tmp_path / "x.npy"),
    )
    noise = pfdiff.noise(range(7), CONTRACT.shape).double()
    expected = program.evaluate(lambda x, t: small(x, t, 3.0), noise)
    found = torch.from_numpy(np.load(tmp_path / "x.npy")).double()
    assert torch.linalg.norm(found - expected) <= 2e-6 * torch.linalg.norm(expected)
    # Arrays: a row for each seed, cut into batches of four; and what does not fit.
    labels = np.array([3, 1, 4, 1, 5, 9, 2])
    np.save(tmp_path / "labels.npy", labels)
    words = ("--seeds", "0-6", "--condition", f"label={tmp_path / 'labels.npy'}", "--threads", 1)
    run(built / "pfdiff-run", engine, *words, "-o", tmp_path / "rows.npy")
    rows = torch.from_numpy(labels).double()
    expected = program.evaluate(lambda x, t: small(x, t, rows), noise)
    found = torch.from_numpy(np.load(tmp_path / "rows.npy")).double()
    assert torch.linalg.norm(found - expected) <= 2e-6 * torch.linalg.norm(expected)
    said = run(built / "pfdiff-run", engine, "--condition", "label=11", "-o", tmp_path / "y.npy", status=2)
    assert said == "pfdiff-run: condition 'label': 11, expected 0..9\n"
    assert not (tmp_path / "cache").exists()  # of telemetry's device id


def test_conditions_are_arrays(built: Path, tmp_path: Path, mock: Callable[[int], Path]):
    """One value, a row for each seed, cut into the batches of the engine; what does not fit is one line."""
    from ..small.engine import CONTRACT, write_onnx

    engine = tmp_path / "small.engine"
    engine.mkdir()
    write_onnx(engine / "network.onnx")
    program = compile("ddim", CONTRACT.schedule, 5)
    write_manifest(Artifact(engine, CONTRACT, (1, 4), "fp32", {5: program}, {}, records_of(engine)))
    labels = np.array([3, 1, 4, 1, 5, 9, 2])
    arrays = {"labels": labels, "one": np.float32(3), "three": labels[:3], "late": np.array([0, 0, 0, 0, 0, 11, 0])}
    arrays |= {"fortran": np.asfortranarray(np.ones((2, 2))), "complex": np.ones(2, np.complex64)}
    for name, values in arrays.items():
        np.save(tmp_path / name, values)
    (tmp_path / "short.npy").write_bytes((tmp_path / "labels.npy").read_bytes()[:-8])
    expected = {
        "labels": "",
        "one": "",
        "late": "condition 'label': 11, expected 0..9",  # in the second batch
        "three": "3 numbers, expected 1, or as many for each of 7 seeds",
        "short": "ends early",
        "fortran": "is no array in C order",
        "complex": "has dtype '<c8', expected float32",
        "none": "cannot be read as .npy",
    }
    place = {LIBRARY_PATH: str(mock(18))}
    for name, words in expected.items():
        given = ("--seeds", "0-6", "--condition", f"label={tmp_path / name}.npy", "-o", tmp_path / "y.npy")
        sample = (built / "pfdiff-run", engine, "--network", "onnxruntime", *given)
        said = run(*sample, env=place, status=2 if words else 0)
        lines = [one for one in said.splitlines() if not one.startswith("mock: ")]
        assert len(lines) == bool(words)
        assert words in "".join(lines)
    needed = replace(CONTRACT, conditions=tuple(replace(one, default=None) for one in CONTRACT.conditions))
    write_manifest(Artifact(engine, needed, (1, 4), "fp32", {5: program}, {}, records_of(engine)))
    words = ("--network", "onnxruntime", "--condition", "label=3", "-o", tmp_path / "y.npy")
    said = run(built / "pfdiff-run", engine, *words, env=place, status=2)
    assert "pfdiff-run: condition 'shift' is missing; give --condition shift=FILE.npy" in said
