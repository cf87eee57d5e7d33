"""The standard error of an RMS, against how the RMS of other samples of the same kind does scatter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.engine.artifact import read_artifact
from pfdiff.export.build import build
from pfdiff.export.network import Network
from pfdiff.export.precision.added import Added, said

from ...small.precision import SAMPLER, WORDS, small_file


def differences(generator: np.random.Generator, count: int) -> np.ndarray:
    """[count, 3]: a tenth of the samples is five times as wrong as the others."""
    sizes = np.where(generator.random(count) < 0.1, 5.0, 1.0)
    return sizes[:, None] * generator.standard_normal((count, 3))


def test_it_is_how_far_the_error_of_other_samples_lies() -> None:
    generator = np.random.default_rng(0)
    found = [Added.of(differences(generator, 200), 2.0) for _ in range(400)]
    errors = np.array([one.error for one in found])
    assert errors.mean() == pytest.approx(math.sqrt(0.9 + 0.1 * 25), rel=0.02)
    assert np.mean([one.deviation or 0 for one in found]) == pytest.approx(errors.std(), rel=0.1)
    assert found[0].part == found[0].error / 2


def test_what_cannot_be_known_is_not_said() -> None:
    one = Added.of(np.ones((1, 4)), 2.0)
    assert one == (1.0, 2.0, None)
    assert said(one.record) == "1"
    assert Added.of(np.array([[1.0], [np.nan]]), 2.0) == (math.inf, 2.0, None)
    assert Added.of(np.zeros((3, 2)), math.inf).record == {"added": 0.0, "standard_error": 0.0}
    assert said({"added": 0.0213, "standard_error": 0.00134}) == "0.021 ± 0.001"
    assert said({"added": 0.0213}) == "0.021"  # of an engine of before


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_an_engine_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str) -> None:
    from pfdiff.cli.info import print_info

    given: dict[str, Any] = {**SAMPLER, "precision": precision, "backend": "onnxruntime", "out": tmp_path / "e"}
    lines: list[str] = []
    build(Network(small_file(tmp_path), **WORDS), 2, **given, progress=lines.append).close()
    held = read_artifact(tmp_path / "e").provenance["precision_record"]["samples"]["NFE 2"]
    assert 0 < held["standard_error"] < 0.3 * held["added"]
    assert any(f"RMS added to samples: NFE 2 {said(held)}" in line for line in lines)
    print_info(tmp_path / "e", nfe=None, as_json=False)
    assert f"NFE 2 {said(held)}" in " ".join(capsys.readouterr().out.split())
