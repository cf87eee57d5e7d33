"""`precision="auto"`: the fastest within the bound, by times that are given and errors that are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.errors import BackendError, InputError
from pfdiff.export.build import build
from pfdiff.export.network import Network
from pfdiff.export.precision import auto

from ...small.precision import SAMPLER, WORDS, small_file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_file(tmp_path_factory.mktemp("auto"))


def built(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch, times: dict[str, float], **given: Any
) -> tuple[str, list[str]]:
    """(precision, lines) of fp32 and int8, with these times in place of measured ones."""
    monkeypatch.setattr(auto, "CANDIDATES", ("fp32", "int8"))
    monkeypatch.setattr(auto, "_times", lambda engines, first, tables: {name: times[name] for name in engines})
    lines: list[str] = []
    given = {**SAMPLER, "backend": "onnxruntime", **given}
    build(Network(file, **WORDS), 2, precision="auto", out=out, progress=lines.append, **given).close()
    return read_artifact(out).precision, lines


def test_the_fastest_within_the_bound_is_taken(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precision, lines = built(file, tmp_path / "e", monkeypatch, {"fp32": 3.0, "int8": 1.0})
    assert precision == "int8"
    assert any(line.startswith("precision int8: the fastest here") for line in lines)
    choice = read_artifact(tmp_path / "e").provenance["precision_choice"]
    assert choice["milliseconds"] == {"fp32": 3.0, "int8": 1.0}
    assert 0 < choice["added"]["int8"]["2"] <= choice["bound"]["2"] == choice["own"]["2"] / 2
    _, again = built(file, tmp_path / "e", monkeypatch, {})  # nothing is measured again
    assert any("by measurement when this engine was built" in line for line in again)


def test_a_slower_one_gets_a_line_and_is_not_taken(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precision, lines = built(file, tmp_path / "e", monkeypatch, {"fp32": 1.0, "int8": 1.2})
    assert precision == "fp32"
    assert any(line.startswith("int8: 1.2 ms") and "slower here than fp32" in line for line in lines)


def test_fp8_and_what_the_cpu_lacks_are_named() -> None:
    assert auto.why_slow("fp8", on_gpu=False) == "a CPU has no float8 arithmetic"
    assert auto.why_slow("fp8", on_gpu=True) == auto.why_slow("int8", on_gpu=False) == ""


def test_a_bound_nobody_keeps_leaves_fp32(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precision, lines = built(file, tmp_path / "e", monkeypatch, {"fp32": 3.0, "int8": 1.0}, quantise_error=1e-9)
    assert precision == "fp32"
    assert any(line.startswith("int8: int8: no layer's error is within the bound") for line in lines)


def test_an_engine_of_another_network_is_not_replaced(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(Network(file, **{**WORDS, "prediction": "eps"}, name="small"), 2, **SAMPLER, backend="onnxruntime").close()
    with pytest.raises(InputError, match="holds another network; give the engine another name"):
        build(Network(file, **WORDS, name="small"), 2, **SAMPLER, precision="auto", backend="onnxruntime")


def test_a_precision_whose_samples_fail_is_left_out(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = auto._sample

    def failing(engine: Any, trial: Any, nfe: int) -> Any:
        if engine.precision == "int8":
            raise BackendError("the network's output is not finite")
        return sample(engine, trial, nfe)

    monkeypatch.setattr(auto, "_sample", failing)
    precision, lines = built(file, tmp_path / "e", monkeypatch, {"fp32": 3.0, "int8": 1.0})
    assert precision == "fp32"
    assert "int8: the network's output is not finite" in lines
