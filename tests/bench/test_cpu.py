"""bench/studies/cpu.py: its configurations, rates that are the best of all tries, samples compared first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pfdiff.bench.measuring.cases import Engines
from pfdiff.bench.studies import cpu
from pfdiff.engine.errors import BackendError, PfdiffError

from ..small.engine import write_engine


def test_what_a_cpu_has_not_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(backend: str, precision: str) -> None:
        if (backend, precision) != ("onnxruntime", "fp32"):
            raise BackendError("not on this CPU")

    monkeypatch.setattr(cpu, "check_precision", check)
    assert cpu.configurations() == [("onnxruntime", "fp32")]


def test_a_rate_is_the_best_of_all_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([4.0, 2.0, 0.5, 1.0, 9.0, 0.25, 2.0, 8.0, 1.0])  # copy, product, call; three times
    monkeypatch.setattr(cpu, "configurations", lambda: [("onnxruntime", "fp32")])
    monkeypatch.setattr(cpu, "best_ms", lambda function, seconds: next(tries))
    rates = cpu.Rates(tmp_path)
    for _ in range(3):
        rates.again()
    assert rates.copy == 1e3 * cpu.COPIED / 1.0
    [row] = rates.rows()
    assert row == {
        "backend": "onnxruntime",
        "precision": "fp32",
        "gflops": pytest.approx(2 * 1024**3 / 2e-3 / 1e9),
        "call_ms": 0.25,
    }


def test_another_sample_is_refused_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    write_engine(tmp_path / "fashion_fp32.engine", batch=(1,))

    def loop(*_: Any) -> Any:
        return lambda noise: 2 * noise

    monkeypatch.setattr(cpu, "diffusers_loop", loop)
    monkeypatch.setattr(cpu, "_in_turns", lambda calls, seconds: pytest.fail("it was timed"))
    with Engines(tmp_path) as engines, pytest.raises(PfdiffError, match=r"fashion, onnxruntime .*: another sample, by"):
        cpu.network_figures(engines, "fashion", 0.1)


def test_missing_arguments_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cpu.main([])
    assert stopped.value.code == 2
    assert "the following arguments are required: built, out" in capsys.readouterr().err
