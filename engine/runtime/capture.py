"""Recording launches in a CUDA graph, without harm when that turns out to be impossible.

A capture that fails inside torch.cuda.graph leaves torch's random generator and allocator in the middle of it (torch
2.13: `CUDAGraph.capture_end` raises before it has put them back). So the launches are recorded once by the driver alone
first; what that refuses is never tried with torch. A synchronisation of the whole device invalidates every capture in
the process, so both take turns under one lock.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

WARM_UP_RUNS = 3
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating
EXCLUSIVE = threading.RLock()  # held for a capture, for synchronising the whole device, and for settings of torch

Launch = Callable[[], None]


def record(launch: Launch, stream: torch.cuda.Stream, pool: Any) -> torch.cuda.CUDAGraph:
    """A graph of `launch`, which is run a few times first so that everything it needs is compiled and allocated.

    Raises what the launches raise, and RuntimeError when they cannot be captured.
    """
    with EXCLUSIVE, torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            launch()
        stream.synchronize()
        _rehearse(launch, stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            _forget_workspaces()  # what cuBLAS takes now comes from the graph's own memory, which nobody else gets
            launch()
            _forget_workspaces()
        stream.synchronize()
    return graph


def _forget_workspaces() -> None:
    """Make torch give cuBLAS new workspaces from here on (CUDA semantics, "cuBLAS workspaces").

    It keeps one for each stream, outside of all graphs, and anybody may have it thrown away: torch.compile in mode
    reduce-overhead does before and after it records. A graph would go on writing where it was.
    """
    torch._C._cuda_clearCublasWorkspaces()


def _rehearse(launch: Launch, stream: torch.cuda.Stream) -> None:
    """Record `launch` with the driver and throw the graph away. Raises RuntimeError when that is refused."""
    driver = _driver()
    if driver is None:
        return
    torch.cuda.synchronize(stream.device)
    torch.empty(1, device=stream.device)  # torch's allocator looks at its finished events now, not in the capture
    handle, graph = ctypes.c_void_p(stream.cuda_stream), ctypes.c_void_p()
    begun = driver.cuStreamBeginCapture_v2(handle, THREAD_LOCAL)
    if begun:
        raise RuntimeError(f"the driver begins no capture (CUDA error {begun})")
    problem: Exception | None = None
    try:
        launch()
    except Exception as error:  # whatever the network's library raises inside a capture
        problem = error
    ended = driver.cuStreamEndCapture(handle, ctypes.byref(graph))
    if graph.value:
        driver.cuGraphDestroy(graph)
    if problem is not None:
        raise RuntimeError(str(problem)) from problem
    if ended:
        raise RuntimeError(f"the network did something that a capture does not allow (CUDA error {ended})")


def _driver() -> Any:
    """The CUDA driver's library; None where it cannot be found, and torch alone has to do."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
