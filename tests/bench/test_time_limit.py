"""--bench-budget: how it is read, and what it does to a run; how long rounds go on in `pfdiff bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pfdiff.bench.time_limit import parse_budget
from pfdiff.engine.runtime.timing.latency import FEWEST_ROUNDS, SETTLED_ROUNDS, Enough, in_turns

from ..small.engine import write_engine


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("2min", 120), ("0.5h", 1800), (None, None)])
def test_a_budget_is_a_time(text: str | None, seconds: float | None) -> None:
    assert parse_budget(text).seconds == seconds


@pytest.mark.parametrize("text", ["60", "s", "-1s", "0s", "1 s", "1e9s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(pytest.UsageError, match="expected a time such as 60s"):
        parse_budget(text)


def test_a_budget_is_shared_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, clock = parse_budget("60s"), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert budget.share(1.0, 10) == 1.0  # there is time enough
    assert budget.share(1.0, 100) == pytest.approx(0.3)  # half of it is timing
    assert not budget.is_spent
    clock[0] += 59
    assert not budget.is_spent
    clock[0] += 2
    assert budget.is_spent
    assert parse_budget(None).announcement(60, 1.0).startswith("pfdiff.bench: 60 benchmarks of 1 s each")


def test_a_run_says_how_long_it_takes_and_ends_in_time(tmp_path: Path) -> None:
    """The budget is over after the first test: the others are skipped, and the reason says so."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    write_engine(tmp_path / "my.engine", nfe=(4,))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pfdiff.bench.options", "-rs"]
    words += ["--pyargs", "pfdiff.bench", "--engine", "my.engine", "-k", "test_update and onnxruntime"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run([*words, "--bench-budget=0.000001s"], cwd=tmp_path, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "benchmarks within 0.000001s, small batches first; the rest is skipped" in done.stdout
    assert "--bench-budget 0.000001s is spent" in done.stdout
    assert "1 passed, 1 skipped" in done.stdout


# Rounds.
def test_rounds_end_when_the_median_is_known() -> None:
    enough = Enough(1e9)
    steady = np.full((100, 2), 7.0)
    assert not enough(steady[: SETTLED_ROUNDS - 1])
    assert enough(steady[:SETTLED_ROUNDS])
    noisy = np.abs(np.random.default_rng(0).normal(7, 3, (400, 2)))
    assert not enough(noisy[:SETTLED_ROUNDS])
    # 1.57 IQR / sqrt(n) of a normal of spread 3 is 1 % of 7 at n = 8200.
    assert not enough(noisy)


def test_rounds_end_with_the_seconds() -> None:
    calls: list[int] = []
    times = in_turns([lambda: calls.append(0)], 500, enough=Enough(0.0))
    assert len(times) == FEWEST_ROUNDS
    assert len(in_turns([lambda: calls.append(0)], 7)) == 7
