"""One capture of launches in a CUDA graph, by the driver, and its replay.

    warm up, begin capture, launch, end capture, look at the nodes, instantiate        (once)
    launch the graph                                                                   (at every replay)

The driver's own graph is kept, so that nothing of torch is in the middle of a capture when one fails: with
`torch.cuda.graph`, a failed capture leaves torch's allocator and random generator in capture (torch 2.13). What the
launches allocate comes from a `torch.cuda.MemPool`, which nobody else gets memory from. Networks that draw random
numbers are refused by torch, since its generator is not in capture.

CUDA Driver API, "Stream Management" and "Graph Management"; called through NVIDIA's cuda-bindings.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any, final

import torch

from ...device import EXCLUSIVE
from ...errors import first_line

WARM_UP_RUNS = 2  # the first compiles and allocates, the second runs as a replay will

Launch = Callable[[], None]


class NotCapturedError(RuntimeError):
    """The launches cannot be captured; the text says why in one clause. They may still be run as they are."""


@final
class Graph:
    """An executable graph on the stream that it was captured on. It holds the pool of memory that its nodes use."""

    def __init__(self, driver: Any, graph: Any, stream: torch.cuda.Stream, pool: Any) -> None:
        self._driver = driver
        self._stream: int = stream.cuda_stream
        self._pool = pool
        self._executable = _checked(driver, driver.cuGraphInstantiate(graph, 0), "cannot instantiate the graph")
        weakref.finalize(self, driver.cuGraphExecDestroy, self._executable)

    def replay(self) -> None:
        """Launch on the stream of the capture, which the caller orders with others."""
        _checked(self._driver, self._driver.cuGraphLaunch(self._executable, self._stream), "cannot launch the graph")


def record(launch: Launch, stream: torch.cuda.Stream, pool: Any) -> Graph:
    """A graph of `launch`, which is run first so that everything it needs is compiled and allocated.

    pool: the `torch.cuda.MemPool` of its memory. Raises what the first runs raise, NotCapturedError, and
    torch.cuda.OutOfMemoryError. Whatever is raised, an interruption too, the stream is no longer capturing.
    """
    driver = load_driver()
    with EXCLUSIVE, torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            launch()
        stream.synchronize()
        with torch.cuda.use_mem_pool(pool, stream.device):
            graph = _captured(driver, launch, stream)
        try:
            if unsafe := _unsafe(driver, graph):
                raise NotCapturedError(unsafe)
            return Graph(driver, graph, stream, pool)
        finally:
            driver.cuGraphDestroy(graph)


def load_driver() -> Any:
    """cuda.bindings.driver. Raises NotCapturedError."""
    try:
        return import_module("cuda.bindings.driver")
    except ImportError:
        raise NotCapturedError("the package cuda-bindings is not installed; pip install cuda-bindings") from None


def _captured(driver: Any, launch: Launch, stream: torch.cuda.Stream) -> Any:
    """The driver's graph of the launches."""
    # Other threads may go on allocating: what they do is no part of the capture.
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _checked(driver, driver.cuStreamBeginCapture(stream.cuda_stream, mode), "the driver begins no capture")
    whole = False
    try:
        _forget_workspaces()  # what cuBLAS takes now comes from the graph's own memory, which nobody else gets
        launch()
        _forget_workspaces()
        whole = True
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the network's library raises inside a capture
        raise NotCapturedError(first_line(error)) from error
    finally:
        error, graph = driver.cuStreamEndCapture(stream.cuda_stream)
        if not whole and not int(error):
            driver.cuGraphDestroy(graph)
    return _checked(driver, (error, graph), "the network did something that a capture does not allow")


def _unsafe(driver: Any, graph: Any) -> str:
    """What in a graph makes a replay unsafe, in one clause; empty when nothing does.

    A replay repeats a copy from the host's memory and a call of the host's code, whatever has become of that memory.
    """
    kinds = driver.CUgraphNodeType
    _, count = _checked(driver, driver.cuGraphGetNodes(graph), "cannot read the graph")
    nodes, _ = _checked(driver, driver.cuGraphGetNodes(graph, count), "cannot read the graph") if count else ([], 0)
    for node in nodes:
        kind = _checked(driver, driver.cuGraphNodeGetType(node), "cannot read a node of the graph")
        if kind == kinds.CU_GRAPH_NODE_TYPE_HOST:
            return "the network calls code on the host (a host node), which a replay must not repeat"
        if kind == kinds.CU_GRAPH_NODE_TYPE_MEMCPY and _from_host(driver, node):
            return "the network copies from the host's memory (a memcpy node), which may have changed at a replay"
        if kind == kinds.CU_GRAPH_NODE_TYPE_GRAPH:
            child = _checked(driver, driver.cuGraphChildGraphNodeGetGraph(node), "cannot read a child graph")
            if unsafe := _unsafe(driver, child):
                return unsafe
    return ""


def _from_host(driver: Any, node: Any) -> bool:
    kinds, attribute = driver.CUmemorytype, driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    copy = _checked(driver, driver.cuGraphMemcpyNodeGetParams(node), "cannot read a memcpy node of the graph")
    if copy.srcMemoryType != kinds.CU_MEMORYTYPE_UNIFIED:
        return copy.srcMemoryType == kinds.CU_MEMORYTYPE_HOST
    error, kind = driver.cuPointerGetAttribute(attribute, copy.srcDevice)
    return bool(int(error)) or int(kind) == int(kinds.CU_MEMORYTYPE_HOST)  # CUDA does not know pageable memory


def _checked(driver: Any, answer: tuple[Any, ...], problem: str) -> Any:
    """What a driver call returns beside its status: nothing, one value, or a tuple. Raises NotCapturedError."""
    status, *values = answer
    if int(status):
        _, name = driver.cuGetErrorName(status)
        raise NotCapturedError(f"{problem} ({name.decode() if name else int(status)})")
    return values[0] if len(values) == 1 else tuple(values)


def _forget_workspaces() -> None:
    """Make torch give cuBLAS new workspaces from here on (CUDA semantics, "cuBLAS workspaces").

    It keeps one for each stream outside of all graphs, and other code may free it: torch.compile in mode
    reduce-overhead does before and after it records. A graph would go on writing where the workspace was.
    """
    torch._C._cuda_clearCublasWorkspaces()
