"""The pytest plugin of `make gpu`: a line of JSON for each test and measurement, appended as soon as it is there.

A line that is written survives whatever ends the process later. The file is named by PFDIFF_GPU_ROWS.

    {"test": .., "outcome": passed, failed, skipped or error, "seconds": .., "reason": ..}
    the same with "figures": the benchmark's extra_info, "median_s", "rounds"
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import Any

import pytest

ROWS = "PFDIFF_GPU_ROWS"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write a test's line: after its call, or where its set-up or tear-down fails or skips."""
    report = yield
    path = os.environ.get(ROWS)
    if path and (report.when == "call" or report.outcome != "passed"):
        outcome = "error" if report.when != "call" and report.outcome == "failed" else report.outcome
        line = {
            "test": report.nodeid,
            "outcome": outcome,
            "seconds": round(report.duration, 3),
            "reason": _reason(report),
            **(_figures(item) if report.when == "call" else {}),
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Mark what was interrupted before its first round, over which pytest-benchmark would fall (5.3.1)."""
    for one in _benchmarks(session.config):
        if not one.stats.data:
            one.fixture.has_error = True
    yield


def _benchmarks(config: pytest.Config) -> list[Any]:
    """What pytest-benchmark has begun to measure in this session."""
    held: Any = getattr(config, "_benchmarksession", None)
    return list(held.benchmarks) if held is not None else []


def _figures(item: pytest.Item) -> dict[str, Any]:
    """The figures of a test that measured something and says where."""
    for one in reversed(_benchmarks(item.config)):
        if one.fullname == item.nodeid and one.stats.data and one.extra_info.get("machine"):
            return {"figures": one.extra_info, "median_s": one.stats.median, "rounds": len(one.stats.data)}
    return {}


def _reason(report: pytest.TestReport) -> str:
    """The last line of a failure, or why a test was skipped."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", report.longrepr or "")).splitlines()[0][:300] if report.longrepr else ""
