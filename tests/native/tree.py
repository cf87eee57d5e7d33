"""The native runtime's build tree: commands, CMake, and an engine directory as the exporter writes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.engine.artifact import Artifact, records_of, write_manifest
from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.contract.contract import Contract

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
SHAPE = (3, 8, 7)

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("c++") is None or sys.platform == "win32",
        reason="needs cmake and a C++ compiler on a POSIX system",
    ),
]


def run(*words: object, status: int | None = 0, env: dict[str, str] | None = None) -> str:
    """Output and errors of a command that must end with `status`, None for any."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    assert status is None or done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def cmake(folder: Path, *options: str, source: Path = ROOT, target: str = "all") -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", source, "-B", folder, *generator, *options)
    run("cmake", "--build", folder, "-j2", "--target", target)
    return folder


def onnxruntime_root() -> Path | None:
    """Where ONNX Runtime's C header is: ONNXRUNTIME_ROOT, or the system's."""
    for root in filter(None, (os.environ.get("ONNXRUNTIME_ROOT"), "/usr", "/usr/local")):
        if any((Path(root) / "include" / place / "onnxruntime_c_api.h").is_file() for place in ("", "onnxruntime")):
            return Path(root)
    return None


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared libraries and tests, warnings as errors, with ONNX Runtime's header or, where that is missing, the mock's.

    Built once, whichever of several processes and modules asks first; the others wait for the lock. PFDIFF_NATIVE_BUILD
    names a folder to build in and to keep: a second run then compiles nothing.
    """
    import fcntl  # POSIX, as all here

    common = tmp_path_factory.getbasetemp()
    common = common.parent if "PYTEST_XDIST_WORKER" in os.environ else common
    folder = Path(os.environ.get("PFDIFF_NATIVE_BUILD") or common / "native")
    finished = common / "native.finished"
    with open(common / "native.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            options = ["-DBUILD_SHARED_LIBS=ON", "-DPFDIFF_TESTS=ON", "-DPFDIFF_WERROR=ON"]
            options += ["-DPFDIFF_CUDA=OFF", "-DPFDIFF_TENSORRT=OFF", "-DPFDIFF_ONNXRUNTIME=ON"]
            cmake(folder, *options, f"-DONNXRUNTIME_ROOT={onnxruntime_root() or NATIVE / 'mock'}")
            finished.touch()
    return folder


def write_network(path: Path, **external: Any) -> None:
    """The smallest network of ONNX, x -> x + 1; `location`: the file beside it that keeps the 1, float32."""
    from onnx import TensorProto, external_data_helper, helper

    one = helper.make_tensor("one", TensorProto.FLOAT, [], np.float32(1).tobytes(), raw=True)
    if external:
        external_data_helper.set_external_data(one, **external)
        one.ClearField("raw_data")
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *SHAPE]) for name in ("x", "out"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["out"])], "plus_one", [x], [out], [one])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())


def write_engine(folder: Path, solver: str, schedule: str, nfe: int = 8, prediction: str = "eps", **options) -> Path:
    """An engine directory as the exporter writes it, with another network in the place of the gaussian one."""
    program = compile(solver, schedule, nfe, prediction=prediction, **options)
    folder.mkdir()
    write_network(folder / "network.onnx")
    contract = Contract(name="gaussian", shape=SHAPE, schedule=schedule, prediction=prediction)
    write_manifest(Artifact(folder, contract, (1, 4), "fp32", {nfe: program}, {"note": "é 1e-05"}, records_of(folder)))
    return folder
