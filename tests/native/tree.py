"""The native runtime's build tree: commands, CMake, and an engine directory as the exporter writes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pfdiff.engine.artifact import Artifact, records_of, write_manifest
from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.contract import Contract

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


def cmake(folder: Path, *options: str, source: Path = ROOT) -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", source, "-B", folder, *generator, *options)
    run("cmake", "--build", folder, "-j2")
    return folder


def onnxruntime_root() -> Path | None:
    """Where ONNX Runtime's C++ headers are: ONNXRUNTIME_ROOT, or the system's."""
    for root in filter(None, (os.environ.get("ONNXRUNTIME_ROOT"), "/usr", "/usr/local")):
        if any((Path(root) / "include" / place / "onnxruntime_cxx_api.h").is_file() for place in ("", "onnxruntime")):
            return Path(root)
    return None


def write_engine(folder: Path, solver: str, schedule: str, nfe: int = 8, prediction: str = "eps", **options) -> Path:
    """An engine directory as the exporter writes it, with a file in the network's place."""
    program = compile(solver, schedule, nfe, prediction=prediction, **options)
    folder.mkdir()
    (folder / "network.onnx").write_bytes(b"the gaussian network needs no file")
    contract = Contract(name="gaussian", shape=SHAPE, schedule=schedule, prediction=prediction)
    write_manifest(Artifact(folder, contract, (1, 4), "fp32", {nfe: program}, {"note": "é 1e-05"}, records_of(folder)))
    return folder
