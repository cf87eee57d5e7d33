"""What a call asks of the CUDA driver and of torch's allocator, counted by the profiler.

Of the driver's own calls torch's profiler keeps launches of kernels and mappings of memory alone (Kineto's
`CuptiCbidRegistry.cpp`). Launches of graphs, which the engine makes by the driver, are counted where they are called.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...engine.runtime.cuda.capture import NotCapturedError, load_driver

LAUNCHES = ("LaunchKernel", "GraphLaunch")
WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "cudaMemcpy", "cuMemcpyDtoH", "cudaFree")
COPIES = ("MemcpyAsync", "cudaMemcpy", "cuMemcpy")
ALLOCATIONS = ("cudaMalloc", "cuMemAlloc", "cudaHostAlloc", "cudaMallocHost", "cuMemCreate")


def runtime_calls(function: Callable[[], object]) -> Counter[str]:
    """CUDA runtime and driver calls that `function` makes, by name; what is done after it is not counted."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with (
        torch.profiler.profile(activities=kinds) as profile,
        torch.profiler.record_function("measured"),
        driver_graph_launches() as by_driver,
    ):
        function()
    torch.cuda.synchronize()
    events = [one for one in profile.events() or [] if one.device_type.name == "CPU"]
    [span] = [one.time_range for one in events if one.name == "measured"]
    inside = [one for one in events if span.start <= one.time_range.start and one.time_range.end <= span.end]
    calls = Counter(one.name for one in inside if re.match(r"cu(da)?[A-Z]", one.name))
    return calls if any(name.startswith("cuGraphLaunch") for name in calls) else calls + by_driver


@contextlib.contextmanager
def driver_graph_launches() -> Iterator[Counter[str]]:
    """The driver's cuGraphLaunch, counted from here to the end."""
    counted: Counter[str] = Counter()
    try:
        driver = load_driver()
    except NotCapturedError:  # then nothing is captured by the driver either
        yield counted
        return
    launch = driver.cuGraphLaunch

    def counting(*words: Any) -> Any:
        counted["cuGraphLaunch"] += 1
        return launch(*words)

    driver.cuGraphLaunch = counting
    try:
        yield counted
    finally:
        driver.cuGraphLaunch = launch


def launches(calls: Counter[str]) -> int:
    """Kernels and graphs that were launched."""
    return sum(count for name, count in calls.items() if any(word in name for word in LAUNCHES))


def graph_launches(calls: Counter[str]) -> int:
    """Graphs that were launched, whatever suffix of a version the profiler gives the call."""
    return sum(count for name, count in calls.items() if "GraphLaunch" in name)


def waits(calls: Counter[str]) -> Counter[str]:
    """Calls that make the host wait for the device."""
    return Counter({name: n for name, n in calls.items() if any(w in name for w in WAITS) and "Async" not in name})


def copies(calls: Counter[str]) -> Counter[str]:
    """Copies between host and device, or on the device."""
    return Counter({name: count for name, count in calls.items() if any(word in name for word in COPIES)})


def allocations(calls: Counter[str]) -> Counter[str]:
    """Calls that take memory from the driver."""
    return Counter({name: n for name, n in calls.items() if any(word in name for word in ALLOCATIONS)})


def allocator_requests(function: Callable[[], object]) -> int:
    """How often `function` asks torch's allocator for device memory, cached or not."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    function()
    return torch.cuda.memory_stats()["allocation.all.allocated"] - before
