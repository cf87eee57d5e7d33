"""What is captured, kept, dropped and refused, on CPU tensors with CUDA's streams and graphs replaced by notes."""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.backends.abstract import NetworkFiles
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.contract import DecoderContract
from pfdiff.engine.errors import BackendError
from pfdiff.engine.runtime import capture
from pfdiff.engine.runtime import cuda_loop as graph
from pfdiff.engine.runtime.cuda_loop import BatchKind, CudaLoop, bytes_needed
from pfdiff.engine.runtime.decoder import LoadedDecoder
from pfdiff.engine.runtime.loop import Inputs, Tables, make_tables
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.session import Session
from pfdiff.kernels import eager

from ...small.engine import CONTRACT, SHAPE, program, small
from ..test_devices import MIB, Machine

CPU = torch.device("cpu")
PLAIN = replace(CONTRACT, conditions=())


class Notes(list[str]):
    """What was asked of CUDA, in order; it is also the stream."""

    cuda_stream = 7
    device = CPU

    def synchronize(self) -> None:
        self.append("synchronize")

    def wait_stream(self, other: Any) -> None:
        self.append("wait")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()
    Machine().install(monkeypatch)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: notes)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def record(launch: Any, stream: Any, pool: Any) -> Any:
        notes.append(f"record {pool}")

        def replay() -> None:
            notes.append("replay")
            launch()

        return types.SimpleNamespace(replay=replay)

    monkeypatch.setattr(graph, "record", record)
    return notes


def loop_of(notes: Notes, module: Any = small, decoder: LoadedDecoder | None = None, **options: Any) -> CudaLoop:
    backend = TorchCuda(NetworkFiles(Path("none"), PLAIN, module), CPU)
    backend.stream = notes  # type: ignore[assignment]
    return CudaLoop(backend, PLAIN, decoder, **options)


def tables(nfe: int = 4) -> Tables:
    return make_tables(program(nfe, PLAIN), PLAIN)


def draw(loop: CudaLoop, held: Tables, size: int = 4, count: int = 3, pixels: bool = False) -> torch.Tensor:
    channels, height, width = loop._decoder.contract.image if loop._decoder else SHAPE
    shape = (count, height, width, channels) if pixels else (count, *SHAPE)
    into = torch.empty(shape, dtype=torch.uint8 if pixels else torch.float32)
    loop.run(held, size, Inputs(np.arange(count, dtype=np.uint64), None, ()), pixels=pixels, into=into)
    return into


def test_one_capture_for_each_kind_and_one_replay_for_each_call(cuda: Notes) -> None:
    loop, held = loop_of(cuda), tables()
    x = draw(loop, held)
    exact = program(4, PLAIN).evaluate(small, noise(range(3), SHAPE))
    assert torch.allclose(x, exact, rtol=1e-5, atol=1e-5)
    assert cuda == ["wait", "record (0, 1)", "replay", "replay", "wait"]  # the first replay is looked at
    cuda.clear()
    assert torch.equal(draw(loop, held), x)
    assert cuda == ["wait", "replay", "wait"]
    cuda.clear()
    draw(loop, held, pixels=True)
    draw(loop, held, size=8)
    loop.run(held, 4, Inputs(None, torch.ones(2, 30), ()), pixels=False, into=torch.empty(2, *SHAPE))
    draw(loop, tables(6))
    assert cuda.count("record (0, 1)") == 4
    assert loop.execution == "one CUDA graph a batch"


def test_the_oldest_graph_makes_room(cuda: Notes) -> None:
    loop, four, six = loop_of(cuda, largest=2), tables(4), tables(6)
    draw(loop, four)
    draw(loop, six)
    draw(loop, four)  # now six is the oldest
    draw(loop, six, size=8)
    assert [(key[0].nfe, key[1].bucket) for key in loop._held] == [(4, 4), (6, 8)]
    assert "synchronize" in cuda
    loop.clear()
    assert not loop._held


def test_a_refused_capture_is_announced_once_and_goes_on(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nlong C++ trace")

    monkeypatch.setattr(graph, "record", refuse)
    loop, held = loop_of(cuda), tables()
    with pytest.warns(RuntimeWarning, match=r"'torch' cannot be captured .* \(operation not permitted .* capturing\)"):
        x = draw(loop, held)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(loop, held, size=8)
    assert loop.execution == "kernel by kernel, not captured: operation not permitted when stream is capturing"
    monkeypatch.undo()
    assert torch.allclose(x, program(4, PLAIN).evaluate(small, noise(range(3), SHAPE)), rtol=1e-5, atol=1e-5)


def test_a_backend_that_knows_better_is_not_tried(cuda: Notes) -> None:
    loop = loop_of(cuda)
    loop._backend.not_capturable = "its library says no"
    with pytest.warns(RuntimeWarning, match=r"cannot be captured in a CUDA graph \(its library says no\)"):
        draw(loop, tables())
    assert "record (0, 1)" not in cuda


def test_no_graph_was_wanted(cuda: Notes) -> None:
    loop = loop_of(cuda, graph=False)
    draw(loop, tables())
    assert not any(note.startswith("re") for note in cuda)
    assert loop.execution == "kernel by kernel, not captured: not wanted"


def test_memory_is_counted_before_anything_is_allocated(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(free=MIB).install(monkeypatch)
    loop = loop_of(cuda)
    loop._backend.bytes_per_sample = 300_000
    made: list[object] = []
    monkeypatch.setattr(graph, "CudaBatch", lambda *_: made.append(1))
    with pytest.raises(
        BackendError, match="batch 4 needs 2 MiB on cpu, 1 MiB are free; the largest batch that fits is 3"
    ):
        draw(loop, tables())
    assert not made


def test_somebody_elses_capture(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        BackendError, match="this stream is being captured in a CUDA graph, and an engine brings its own"
    ):
        draw(loop_of(cuda), tables())


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"),
            "batch 4 does not fit .* build with a smaller --bat",
        ),
        (ValueError("shapes differ\nmore"), "sampling a batch of 4 failed: shapes differ$"),
        (RuntimeError("illegal memory access"), "sampling a batch of 4 failed: illegal memory access$"),
    ],
)
def test_what_a_library_raises_becomes_one_sentence(
    raised: Exception, message: str, cuda: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise raised

    monkeypatch.setattr(graph, "record", lambda launch, *_: launch())
    with pytest.raises(BackendError, match=message) as caught:
        draw(loop_of(cuda, network), tables())
    assert "\n" not in str(caught.value)


def test_samples_that_are_not_finite(cuda: Notes) -> None:
    with pytest.raises(BackendError, match="the samples are not finite: the network overflows in fp32 or gives NaN"):
        draw(loop_of(cuda, lambda x, t: x / 0), tables())


def test_the_session_cuts_requests_for_the_device_loop_too(cuda: Notes) -> None:
    loop = loop_of(cuda)
    session = Session(loop._backend, PLAIN, (1, 4))
    session._loop = loop
    held, keys = tables(), np.arange(5, dtype=np.uint64)
    x = session.run(held, Inputs(keys, None, ()))
    assert {key[1].bucket for key in loop._held} == {1, 4}
    assert torch.allclose(x, program(4, PLAIN).evaluate(small, noise(range(5), SHAPE)), rtol=1e-5, atol=1e-5)
    pixels = session.run(held, Inputs(keys, None, ()), pixels=True)
    assert pixels.shape == (5, 3, 5, 2)
    cuda.clear()
    session.floor(held, 4)()
    session.updates(held, 4)()
    session.alone(lambda: None)()
    assert cuda == 3 * ["record (0, 1)", "wait", "replay", "wait"]  # in a graph of its own, between the caller's work
    session.close()
    with pytest.raises(BackendError, match="is closed"):
        session.run(held, Inputs(keys, None, ()))


# A latent model's decoder.
def decode(latents: torch.Tensor) -> torch.Tensor:
    """[B, 2, 3, 5] -> [B, 3, 6, 10]: both channels and their mean, twice as large."""
    return torch.cat((latents, latents.mean(1, keepdim=True)), 1).repeat_interleave(2, 2).repeat_interleave(2, 3) / 2


def decoder_of(function: Any = decode, precision: str = "fp32") -> LoadedDecoder:
    contract = DecoderContract("twice", SHAPE, (3, 6, 10), precision=precision)
    return LoadedDecoder(TorchCuda(NetworkFiles(Path("none"), contract, function), CPU), contract)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_decoder_runs_inside_the_graph_after_the_last_step(precision: str, cuda: Notes) -> None:
    def evaluate(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cuda.append("network")
        return small(x, t)

    def decoding(latents: torch.Tensor) -> torch.Tensor:
        cuda.append(f"decoder {latents.dtype}")
        return decode(latents)

    loop, held = loop_of(cuda, evaluate, decoder_of(decoding, precision)), tables()
    first = draw(loop, held, pixels=True)
    cuda.clear()
    assert torch.equal(draw(loop, held, pixels=True), first)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    assert cuda == ["wait", "replay", *["network"] * 4, f"decoder {dtype}", "wait"]
    wanted = torch.empty_like(first)
    images = decode(program(4, PLAIN).evaluate(small, noise(range(3), SHAPE)).to(dtype)).float()
    eager.images(wanted, images, *PLAIN.data_range)
    assert (first.int() - wanted.int()).abs().max() <= 1
    latents = draw(loop, held)
    assert torch.allclose(latents, program(4, PLAIN).evaluate(small, noise(range(3), SHAPE)), rtol=1e-5, atol=1e-5)
    assert cuda.count(f"decoder {dtype}") == 1  # samples are not decoded


def test_images_that_are_not_finite(cuda: Notes) -> None:
    loop = loop_of(cuda, decoder=decoder_of(lambda latents: decode(latents) / 0))
    with pytest.raises(BackendError, match="the decoder's images are not finite in fp32; check its weights and its sc"):
        draw(loop, tables(), pixels=True)


def test_a_decoder_that_cannot_be_captured(cuda: Notes) -> None:
    decoder = decoder_of()
    decoder.backend.not_capturable = "its library says no"
    loop = loop_of(cuda, decoder=decoder)
    draw(loop, tables())
    assert loop.execution == "one CUDA graph a batch"
    with pytest.warns(RuntimeWarning, match=r"cannot be captured in a CUDA graph \(its library says no\)"):
        draw(loop, tables(), pixels=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_decoders_buffers_are_counted(precision: str, cuda: Notes) -> None:
    decoder, held = decoder_of(precision=precision), tables()
    plain = bytes_needed(held, PLAIN, BatchKind(1, True, False), torch.float32, decoder)
    pixels = bytes_needed(held, PLAIN, BatchKind(1, True, True), torch.float32, decoder)
    converted = 2 * (30 + 180) if precision == "fp16" else 0  # latents and image in its own dtype
    assert pixels - plain == 180 + 4 * 180 + converted
    loop = loop_of(cuda, decoder=decoder)
    loop._backend.bytes_per_sample, decoder.backend.bytes_per_sample = 1000, 5000
    assert loop._bytes_per_sample(held, BatchKind(4, True, True)) == pixels + 5000
    assert loop._bytes_per_sample(held, BatchKind(4, True, False)) == plain + 1000


# The recording itself.
class Driver:
    """libcuda's three calls; `ended` is what the end of a capture answers."""

    def __init__(self, notes: Notes, ended: int = 0, begun: int = 0) -> None:
        self.notes, self.ended, self.begun = notes, ended, begun

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        self.notes.append(f"begin {stream.value} {mode}")
        return self.begun

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        self.notes.append("end")
        return self.ended

    def cuGraphDestroy(self, graph: Any) -> int:
        self.notes.append("destroy")
        return 0


@pytest.fixture
def torch_graphs(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> Notes:
    @contextlib.contextmanager
    def recording(graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        cuda.append(f"torch {capture_error_mode}")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: cuda.append("device"))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: cuda.append("clear"), raising=False)
    monkeypatch.setattr(capture, "_driver", lambda: Driver(cuda))
    return cuda


def recorded(notes: Notes) -> Any:
    return capture.record(lambda: notes.append("launch"), notes, None)  # type: ignore[arg-type]


def test_launches_are_warmed_up_rehearsed_and_recorded(torch_graphs: Notes) -> None:
    assert recorded(torch_graphs) == "graph"
    warm = ["launch"] * 3 + ["synchronize"]
    rehearsal = ["device", "begin 7 1", "launch", "end"]
    # Between the two clearances cuBLAS gets its workspaces from the graph's memory, and from nowhere else.
    assert torch_graphs == [*warm, *rehearsal, "torch thread_local", "clear", "launch", "clear", "synchronize"]


def test_what_the_driver_refuses_is_never_tried_with_torch(
    torch_graphs: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver, message in (
        (Driver(torch_graphs, ended=901), r"something that a capture does not allow \(CUDA error 901\)"),
        (Driver(torch_graphs, begun=900), r"the driver begins no capture \(CUDA error 900\)"),
    ):
        monkeypatch.setattr(capture, "_driver", lambda driver=driver: driver)
        with pytest.raises(RuntimeError, match=message):
            recorded(torch_graphs)
    assert not any(note.startswith("torch") for note in torch_graphs)


def test_a_launch_that_fails_in_the_rehearsal_ends_it(torch_graphs: Notes) -> None:
    count = [0]

    def launch() -> None:
        count[0] += 1
        if count[0] > capture.WARM_UP_RUNS:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        capture.record(launch, torch_graphs, None)  # type: ignore[arg-type]
    assert torch_graphs[-1] == "end"


def test_without_the_drivers_library_torch_alone_decides(torch_graphs: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_driver", lambda: None)
    assert recorded(torch_graphs) == "graph"
    assert "end" not in torch_graphs
