"""Other programs on a loaded engine: the same samples as an engine that was built with them, one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.errors import BackendError, InputError

from ..small.engine import CONTRACT, program, small, write_engine


def test_other_programs_sample_what_they_mean(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "small.engine").path
    with pfdiff.load(path, "cpu", "onnxruntime") as engine:
        own = engine.sample(seeds=range(3), nfe=6)
        other = engine.with_programs({6: program(6, solver="ddim"), 9: program(9, solver="dpm++:2m")})
        assert list(other.programs) == [6, 9]
        assert list(engine.programs) == [4, 6]
        noise = pfdiff.noise(range(3), CONTRACT.shape).double()
        for nfe, made in other.programs.items():
            exact = made.evaluate(small, noise).numpy()
            found = other.sample(seeds=range(3), nfe=nfe).numpy()
            assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()
        assert np.array_equal(engine.sample(seeds=range(3), nfe=6), own)
        with pytest.raises(InputError, match="nfe=4, this engine has 6, 9"):
            other.sample(seeds=[0], nfe=4)
    with pytest.raises(BackendError, match="closed"):
        other.sample(seeds=[0], nfe=6)


def test_a_program_for_another_prediction_is_refused(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "small.engine").path
    foreign = pfdiff.compile("ddim", "linear:1000", 5, prediction="v")
    with (
        pfdiff.load(path, "cpu", "onnxruntime") as engine,
        pytest.raises(InputError, match="a program of v, this network predicts eps"),
    ):
        engine.with_programs({5: foreign})
