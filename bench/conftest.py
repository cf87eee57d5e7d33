"""Fixtures of the suite; its options are in `options`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pfdiff.bench.time_limit import Budget, parse_budget, smallest_first

BUDGET: pytest.StashKey[Budget] = pytest.StashKey()
COUNT: pytest.StashKey[int] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BUDGET] = parse_budget(config.getoption("--bench-budget", None))
    config.stash[COUNT] = 0
    for name, meaning in {
        "gpu": "needs an NVIDIA GPU",
        "host": "a benchmark that is timed on the host wherever the engines run",
        "own": "a benchmark of the suite's own networks, so not with --engine",
    }.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The argument `case`: every case that the module's `select` keeps."""
    if "case" in metafunc.fixturenames:
        from pfdiff.bench.measuring.cases import cases

        module: Any = metafunc.module
        found = list(cases(metafunc.config.getoption("--engine", None)))
        metafunc.parametrize("case", module.select(found), ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--engine", None):
        dropped = [item for item in items if item.get_closest_marker("gpu") or item.get_closest_marker("own")]
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)
    if config.stash[BUDGET].seconds is not None:
        items[:] = smallest_first(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say before the first test how long all of them take."""
    config: Any = session.config
    config.stash[COUNT] = sum(Path(__file__).parent in item.path.parents for item in session.items)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and config.stash[COUNT] and not config.option.collectonly:
        reporter.write_line(config.stash[BUDGET].announcement(config.stash[COUNT], config.getoption("--seconds", 1.0)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    budget = item.config.stash[BUDGET]
    if budget.is_spent:
        pytest.skip(f"--bench-budget {budget.text} is spent")


@pytest.fixture(scope="session")
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The suite's engines, see `cases.Engines`."""
    import torch

    from pfdiff.bench.measuring.cases import Engines

    folder, threads = (request.config.getoption(name, None) for name in ("--built", "--threads"))
    if threads:
        torch.set_num_threads(threads)
    with Engines(Path(folder) if folder else tmp_path_factory.mktemp("engines"), threads) as opened:
        yield opened


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Any:
    """Times a function and others beside it, see `measure.Measure`; on a CUDA device by events."""
    from pfdiff.bench.measuring.cases import device_of
    from pfdiff.bench.measuring.measure import Measure

    benchmark, timer = _timed(request, "cpu" if request.node.get_closest_marker("host") else device_of())
    wanted: Any = request.config.getoption("--seconds", 1.0)
    seconds = request.config.stash[BUDGET].share(wanted, request.config.stash[COUNT])
    return Measure(benchmark, timer, seconds)


@pytest.fixture
def cuda_benchmark(request: pytest.FixtureRequest) -> Any:
    """pytest-benchmark's fixture with rounds timed by events on the current stream, which need not be waited for."""
    benchmark, _ = _timed(request, "cuda")
    return benchmark


def _timed(request: pytest.FixtureRequest, device: str) -> tuple[Any, Any]:
    """The fixture `benchmark` with the timer of a device, and that timer."""
    import torch

    from pfdiff.engine.runtime.timing.latency import timer_of

    timer = timer_of(torch.device(device))
    request.node.add_marker(pytest.mark.benchmark(timer=timer))  # read when the fixture benchmark is made
    return request.getfixturevalue("benchmark"), timer
