"""Starting: the command, the import, loading an engine up to its first sample, and building one.

Budgets: `pfdiff --help` 0.5 s, `import pfdiff` 0.15 s on top of Python, building what is up to date 3 s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.bench.measuring.cases import (
    BATCH,
    NFE,
    SETTINGS,
    Case,
    Engines,
    conditions_of,
    device_of,
    module_for,
    source_of,
)
from pfdiff.bench.measuring.measure import Measure
from pfdiff.bench.measuring.ratios import blocks

pytestmark = pytest.mark.host

COMMANDS = {"pfdiff --help": (["-m", "pfdiff", "--help"], 500), "import pfdiff": (["-c", "import pfdiff"], 150)}


def select(cases: Sequence[Case]) -> list[Case]:
    """One case for each network, precision and backend."""
    return list({(one.engine, one.precision, one.backend): one for one in reversed(cases)}.values())


@pytest.mark.own
@pytest.mark.parametrize("name", list(COMMANDS))
def test_command(measure: Measure, name: str) -> None:
    words, budget_ms = COMMANDS[name]
    times, beside = measure(process(*words), {"python": process("-c", "pass")})
    added_ms = float(np.median(times - beside["python"]))
    ratios = {f"{name} / python": blocks(times, beside["python"])}
    measure.record(times, budget_ms=budget_ms, added_ms=added_ms, ratios=ratios)


def process(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def test_first_sample(measure: Measure, engines: Engines, case: Case) -> None:
    """From the directory to the first sample on the host; files are in the system's cache."""
    engine, load_ms = engines.open(case), []
    module = module_for(case.engine, case.backend)
    given = conditions_of(engine, case.batch)

    def load_and_sample() -> None:
        start = time.perf_counter()
        with engines.load(case, module) as fresh:
            load_ms.append(1e3 * (time.perf_counter() - start))
            fresh.sample(seeds=range(case.batch), nfe=case.nfe, **given).cpu()

    times, _ = measure(load_and_sample, rounds=3)
    measure.record(times, case, engine, load_ms=float(np.median(load_ms)))


@pytest.mark.own
def test_build(measure: Measure, tmp_path: Path) -> None:
    times, _ = measure(lambda: build(tmp_path / "new.engine"), rounds=1)
    measure.record(times)


@pytest.mark.own
def test_build_of_what_is_up_to_date(measure: Measure, engines: Engines) -> None:
    path = engines.path("fashion", "fp32")
    times, _ = measure(lambda: build(path), rounds=3)
    measure.record(times, budget_ms=3000)


def build(out: Path) -> None:
    settings = {**SETTINGS, "batch": BATCH["fashion"], "device": device_of(), "out": out}
    pfdiff.build(source_of("fashion"), NFE["fashion"], **settings).close()
