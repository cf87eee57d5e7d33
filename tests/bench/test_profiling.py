"""What is counted of a call besides what torch's profiler keeps."""

from __future__ import annotations

import sys
import types

import pytest

from pfdiff.bench.measuring import profiling
from pfdiff.bench.measuring.profiling import driver_graph_launches, graph_launches, launches


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """cuda.bindings.driver with the one function that is asked for."""
    module = types.ModuleType("cuda.bindings.driver")
    module.cuGraphLaunch = lambda executable, stream: (executable + stream,)  # type: ignore[attr-defined]
    for name, one in (("cuda", types.ModuleType("cuda")), ("cuda.bindings", types.ModuleType("cuda.bindings"))):
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", module)
    return module


def test_graphs_that_the_driver_launches_are_counted(driver: types.ModuleType) -> None:
    """torch's profiler does not keep cuGraphLaunch, of which every call of an engine makes one."""
    launch = driver.cuGraphLaunch
    with driver_graph_launches() as counted:
        assert driver.cuGraphLaunch(3, 4) == (7,)
        driver.cuGraphLaunch(1, 1)
    assert driver.cuGraphLaunch is launch
    driver.cuGraphLaunch(1, 1)
    assert graph_launches(counted) == launches(counted) == 2
    with pytest.raises(ValueError, match="inside"), driver_graph_launches():
        raise ValueError("inside")
    assert driver.cuGraphLaunch is launch


def test_without_the_package_there_is_nothing_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with driver_graph_launches() as counted:
        pass
    assert not counted


def test_a_graph_is_launched_once_however_it_is_recorded(
    driver: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the profiler, should it learn to keep the driver's calls, or by us; never by both."""
    monkeypatch.setattr(profiling.torch.cuda, "synchronize", lambda: None)
    span = types.SimpleNamespace(start=0, end=9)

    def event(name: str, start: int = 1) -> types.SimpleNamespace:
        times = span if name == "measured" else types.SimpleNamespace(start=start, end=start + 1)
        return types.SimpleNamespace(name=name, device_type=types.SimpleNamespace(name="CPU"), time_range=times)

    for kept in ([], [event("cuGraphLaunch")]):
        found = [event("measured"), event("cudaMemcpyAsync"), event("cudaMemcpyAsync", 20), event("aten::copy_"), *kept]

        class Profile:
            def __init__(self, **_: object) -> None: ...
            def __enter__(self) -> Profile:
                return self

            def __exit__(self, *_: object) -> None: ...
            def events(self, found: list[types.SimpleNamespace] = found) -> list[types.SimpleNamespace]:
                return found

        monkeypatch.setattr(profiling.torch.profiler, "profile", Profile)
        calls = profiling.runtime_calls(lambda: driver.cuGraphLaunch(1, 2))
        assert calls == {"cudaMemcpyAsync": 1, "cuGraphLaunch": 1}
