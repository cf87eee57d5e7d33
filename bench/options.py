"""The options of `pytest --pyargs pfdiff.bench --engine my.engine`.

A plugin (entry point pytest11), since pytest reads no conftest.py of an installed package before it has read its
command line. It adds nothing unless that command line names pfdiff.bench, so other suites may have such options too.
"""

from __future__ import annotations

import sys

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    if not any("pfdiff.bench" in word for word in sys.argv):
        return
    group = parser.getgroup("pfdiff")
    group.addoption("--engine", metavar="DIR", help="measure this engine directory in place of the suite's own engines")
    group.addoption("--built", metavar="DIR", help="where the suite's own engines are built, to keep them between runs")
    group.addoption("--threads", type=int, metavar="N", help="CPU threads of every library; default: their own choice")
    group.addoption("--bench-budget", metavar="TIME", help="the whole run takes about this long: 60s, 2min")
    group.addoption("--seconds", type=float, default=1.0, metavar="N", help="about how long each measurement takes")
