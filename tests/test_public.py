"""The public face: names are frozen, importing costs next to nothing and loads no heavy library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import pfdiff

from .conftest import SKIPPED, pytest_unconfigure

ROOT = Path(next(iter(pfdiff.__path__)))
NAMES = {
    "BackendError",
    "Condition",
    "Contract",
    "Controller",
    "CudaOptions",
    "Decoder",
    "Engine",
    "EngineFileError",
    "InputError",
    "Network",
    "PFDiffScheduler",
    "PfdiffError",
    "Policy",
    "Program",
    "build",
    "compare",
    "compile",
    "evaluate",
    "generate",
    "load",
    "noise",
    "tune",
}
HEAVY = ("torch", "onnxruntime", "onnx", "openvino", "triton", "numpy", "rich", "typer", "PIL")


def python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, cwd=ROOT.parent
    ).stdout


def test_public_names_are_frozen() -> None:
    assert set(pfdiff.__all__) == NAMES | {"__version__"}
    assert dir(pfdiff) == sorted(pfdiff.__all__)


def test_types_are_shipped_and_one_wheel_serves_every_python() -> None:
    """The extension keeps to the stable ABI, so the wheel is tagged abi3."""
    assert (ROOT / "py.typed").is_file()
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "py.typed" in tools["setuptools"]["package-data"]["pfdiff"]
    assert all(module["py-limited-api"] for module in tools["setuptools"]["ext-modules"])
    assert tools["distutils"]["bdist_wheel"]["py_limited_api"] == "cp311"


def test_skips_are_counted_by_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    stash = pytest.Stash()
    stash[SKIPPED] = Counter({"no NVIDIA GPU": 3, "clang-format is not installed": 1})
    pytest_unconfigure(SimpleNamespace(stash=stash))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "skipped: 3 because no NVIDIA GPU, 1 because clang-format is not installed\n"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_documented(name: str) -> None:
    if name == "PFDiffScheduler":
        pytest.importorskip("diffusers")
    assert getattr(pfdiff, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        _ = pfdiff.sampel  # type: ignore[attr-defined]


def test_importing_loads_nothing_heavy() -> None:
    loaded = json.loads(python("import sys, json, pfdiff; print(json.dumps(list(sys.modules)))"))
    assert not set(HEAVY) & {name.partition(".")[0] for name in loaded}


def test_mathematics_needs_numpy_only() -> None:
    code = "import sys, json, pfdiff; pfdiff.compile('ddim', 'cosine:300', 8); print(json.dumps(list(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(python(code))}
    assert "numpy" in loaded
    assert not {"torch", "onnxruntime", "onnx", "openvino", "triton"} & loaded


def test_importing_is_quick() -> None:
    """Processor time of the import itself, so that a busy machine does not matter; the best of three."""
    code = "import time; start = time.process_time(); import pfdiff; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(3)) < 0.15


def test_the_version_is_that_of_the_package() -> None:
    path = ROOT / "pyproject.toml"
    if not path.exists():
        pytest.skip("pyproject.toml is only in the repository")
    assert tomllib.loads(path.read_text())["project"]["version"] == pfdiff.__version__


def test_a_loaded_engine_never_needs_the_exporter(tmp_path: Path) -> None:
    from .small.engine import write_engine

    write_engine(tmp_path / "e")
    code = "import sys, json, pfdiff\nwith pfdiff.load(%r) as engine: engine.sample(seeds=[1], nfe=4)\n"
    loaded = json.loads(python(code % str(tmp_path / "e") + "print(json.dumps(list(sys.modules)))"))
    assert not [name for name in loaded if name.startswith(("pfdiff.export", "onnxscript", "openvino"))]
    assert "onnx" not in loaded
