"""The recording of a graph against a driver that notes what it is asked: one capture, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import types
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

import pytest
import torch

from pfdiff.engine.runtime.cuda import capture
from pfdiff.engine.runtime.cuda.capture import NotCapturedError, record

from .test_cuda_loop import Notes


class Kinds(IntEnum):
    CU_GRAPH_NODE_TYPE_KERNEL = 0
    CU_GRAPH_NODE_TYPE_MEMCPY = 1
    CU_GRAPH_NODE_TYPE_HOST = 3
    CU_GRAPH_NODE_TYPE_GRAPH = 4


class Memory(IntEnum):
    CU_MEMORYTYPE_HOST = 1
    CU_MEMORYTYPE_DEVICE = 2
    CU_MEMORYTYPE_UNIFIED = 4


KERNEL = (Kinds.CU_GRAPH_NODE_TYPE_KERNEL,)
HOST = (Kinds.CU_GRAPH_NODE_TYPE_HOST,)


def copies(kind: Memory, address: int = 0) -> tuple[Any, ...]:
    return Kinds.CU_GRAPH_NODE_TYPE_MEMCPY, types.SimpleNamespace(srcMemoryType=kind, srcDevice=address)


def inside(*nodes: tuple[Any, ...]) -> tuple[Any, ...]:
    return Kinds.CU_GRAPH_NODE_TYPE_GRAPH, nodes


class Driver:
    """cuda.bindings.driver as far as it is used: a status first, then values. `failing` names the call that fails.

    A graph is the tuple of its nodes, a node its kind and what is asked about it. Address 0 is pageable memory, which
    CUDA does not know, 1 pinned memory, 2 the device's.
    """

    CUgraphNodeType = Kinds
    CUmemorytype = Memory
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUpointer_attribute = types.SimpleNamespace(CU_POINTER_ATTRIBUTE_MEMORY_TYPE=2)

    def __init__(self, notes: Notes, *nodes: tuple[Any, ...], failing: str = "") -> None:
        self.notes, self.nodes, self.failing = notes, nodes, failing

    def _answer(self, call: str, *values: Any) -> tuple[Any, ...]:
        return (901 if call == self.failing else 0, *values)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self.notes.append(f"begin {stream} {mode}")
        return self._answer("begin")

    def cuStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        self.notes.append("end")
        return self._answer("end", self.nodes)

    def cuGraphGetNodes(self, graph: Any, count: int = 0) -> tuple[Any, ...]:
        return self._answer("nodes", list(graph[:count]), len(graph))

    def cuGraphNodeGetType(self, node: Any) -> tuple[Any, ...]:
        return self._answer("type", node[0])

    def cuGraphMemcpyNodeGetParams(self, node: Any) -> tuple[Any, ...]:
        return self._answer("params", node[1])

    def cuGraphChildGraphNodeGetGraph(self, node: Any) -> tuple[Any, ...]:
        return self._answer("child", node[1])

    def cuPointerGetAttribute(self, attribute: int, address: int) -> tuple[Any, ...]:
        return (1, None) if address == 0 else (0, address)

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        self.notes.append("instantiate")
        return self._answer("instantiate", "executable")

    def cuGraphLaunch(self, executable: str, stream: int) -> tuple[Any, ...]:
        self.notes.append(f"launch {executable} on {stream}")
        return self._answer("launch")

    def cuGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.notes.append("destroy")
        return (0,)

    def cuGraphExecDestroy(self, executable: str) -> tuple[Any, ...]:
        self.notes.append(f"destroy {executable}")
        return (0,)

    def cuGetErrorName(self, status: int) -> tuple[Any, ...]:
        return 0, b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"


Uses = Callable[..., Notes]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Uses:
    """Installs a driver and gives its notes."""
    notes = Notes()

    @contextlib.contextmanager
    def use_mem_pool(pool: Any, device: Any) -> Iterator[None]:
        notes.append(f"memory of {pool}")
        try:
            yield
        finally:
            notes.append("own memory")

    def use(*nodes: tuple[Any, ...], failing: str = "") -> Notes:
        monkeypatch.setattr(capture, "load_driver", lambda: Driver(notes, *nodes, failing=failing))
        return notes

    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "use_mem_pool", use_mem_pool)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: notes.append("clear"), raising=False)
    return use


def recorded(notes: Notes, launch: Callable[[], None] | None = None) -> Any:
    return record(launch or (lambda: notes.append("network")), notes, "pool")  # type: ignore[arg-type]


def failing_in_capture(notes: Notes, error: BaseException) -> Callable[[], None]:
    """A launch that works until it is captured."""

    def launch() -> None:
        notes.append("network")
        if any(note.startswith("begin") for note in notes):
            raise error

    return launch


def test_one_capture_and_a_launch_a_replay(driver: Uses) -> None:
    notes = driver(KERNEL, copies(Memory.CU_MEMORYTYPE_DEVICE), copies(Memory.CU_MEMORYTYPE_UNIFIED, 2), inside(KERNEL))
    graph = recorded(notes)
    warm = ["network"] * 2 + ["synchronize"]
    # Between the two clearances cuBLAS gets its workspaces from the graph's memory, and from nowhere else.
    captured = ["memory of pool", "begin 7 1", "clear", "network", "clear", "end", "own memory"]
    assert notes == [*warm, *captured, "instantiate", "destroy"]
    notes.clear()
    graph.replay()
    assert notes == ["launch executable on 7"]
    notes.clear()
    del graph
    gc.collect()
    assert notes == ["destroy executable"]


@pytest.mark.parametrize(
    ("failing", "message", "last"),
    [
        ("begin", "the driver begins no capture", ["begin 7 1", "own memory"]),
        ("end", "did something that a capture does not allow", ["end", "own memory"]),
        ("nodes", "cannot read the graph", ["own memory", "destroy"]),
        ("instantiate", "cannot instantiate the graph", ["instantiate", "destroy"]),
    ],
)
def test_what_the_driver_refuses_is_named(failing: str, message: str, last: list[str], driver: Uses) -> None:
    notes = driver(KERNEL, failing=failing)
    with pytest.raises(NotCapturedError, match=rf"{message} \(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED\)"):
        recorded(notes)
    assert notes[-2:] == last


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nlong C++ trace"), NotCapturedError),
        (ValueError("reads a tensor"), NotCapturedError),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), torch.cuda.OutOfMemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(1), SystemExit),
    ],
)
def test_whatever_ends_the_launches_ends_the_capture(
    error: BaseException, raised: type[BaseException], driver: Uses
) -> None:
    notes = driver(KERNEL)
    with pytest.raises(raised) as caught:
        recorded(notes, failing_in_capture(notes, error))
    assert type(caught.value) is raised
    assert "\n" not in str(caught.value)
    assert notes[-3:] == ["end", "destroy", "own memory"]
    assert not capture.EXCLUSIVE._is_owned()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((KERNEL, HOST), r"calls code on the host \(a host node\)"),
        ((KERNEL, inside(KERNEL, inside(HOST))), r"\(a host node\)"),
        ((copies(Memory.CU_MEMORYTYPE_HOST),), r"copies from the host's memory \(a memcpy node\)"),
        ((copies(Memory.CU_MEMORYTYPE_UNIFIED, 1),), r"\(a memcpy node\)"),
        ((copies(Memory.CU_MEMORYTYPE_UNIFIED, 0),), r"\(a memcpy node\)"),
    ],
)
def test_nodes_that_a_replay_must_not_repeat_are_refused_by_name(
    nodes: tuple[Any, ...], message: str, driver: Uses
) -> None:
    notes = driver(*nodes)
    with pytest.raises(NotCapturedError, match=message):
        recorded(notes)
    assert notes[-1] == "destroy"
    assert "instantiate" not in notes


def test_a_replay_that_fails_says_so(driver: Uses) -> None:
    notes = driver(KERNEL, failing="launch")
    with pytest.raises(RuntimeError, match=r"cannot launch the graph \(CUDA_ERROR"):
        recorded(notes).replay()


def test_without_cuda_bindings_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(capture, "import_module", missing)
    with pytest.raises(NotCapturedError, match="cuda-bindings is not installed; pip install cuda-bindings"):
        capture.load_driver()
