"""What is captured, kept, dropped and refused, on CPU tensors with CUDA's streams and graphs replaced by notes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pfdiff.engine.backends.abstract import NetworkFiles
from pfdiff.engine.backends.guided import Guided, UnitScale
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.errors import BackendError, InputError
from pfdiff.engine.runtime.cuda import batch as cuda_batch
from pfdiff.engine.runtime.cuda import loop as cuda_loop
from pfdiff.engine.runtime.cuda.batch import BatchKind
from pfdiff.engine.runtime.cuda.capture import NotCapturedError
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.engine.runtime.inputs import Conditions, Inputs, look_at_device_values
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.session import Session

from ...small.cuda_loop import CPU, PLAIN, Notes, draw, loop_of, noted, tables
from ...small.engine import CONTRACT, SHAPE, Small, program, small
from ..test_devices import MIB, Machine


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Notes:
    return noted(monkeypatch)


def test_one_capture_for_each_kind_and_one_replay_for_each_call(cuda: Notes) -> None:
    loop, held = loop_of(cuda), tables()
    x = draw(loop, held)
    exact = program(4, PLAIN).evaluate(small, noise(range(3), SHAPE))
    assert torch.allclose(x, exact, rtol=1e-5, atol=1e-5)
    before, after = ["event", "wait"], ["event", "wait"]
    assert cuda == [*before, "record in pool", "replay", "replay", *after]  # the first replay is looked at
    cuda.clear()
    assert torch.equal(draw(loop, held), x)
    assert cuda == [*before, "replay", *after]
    cuda.clear()
    draw(loop, held, pixels=True)
    draw(loop, held, size=8)
    loop.run(held, [(2, 4)], Inputs(None, torch.ones(2, 30), ()), pixels=False)
    draw(loop, tables(6))
    assert cuda.count("record in pool") == 4
    assert loop.execution == "one CUDA graph a batch"


class Doubled(torch.nn.Module, Guided):
    """Guidance between `small` with and without its first input; the batches of its evaluations."""

    unit_scale = UnitScale("guidance")

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def __deepcopy__(self, memo: Any) -> Doubled:
        return self

    def forward(self, x: torch.Tensor, t: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        self.batches.append(2 * len(x))
        c, u = small(torch.cat((x, x * 0)), torch.cat((t, t))).chunk(2)
        return u + guidance.reshape(-1, 1, 1, 1) * (c - u)

    def conditional(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(inputs[0]))
        return small(*inputs[:2])


def test_scale_1_has_a_graph_of_its_own_without_the_doubled_batch(cuda: Notes) -> None:
    contract = replace(CONTRACT, conditions=(Condition("guidance", "float32", default=1.0),))
    module = Doubled()
    backend = TorchCuda(NetworkFiles(Path("none"), contract, module), CPU)
    backend.stream = cuda  # type: ignore[assignment]
    loop, held = CudaLoop(backend, contract), make_tables(program(4, contract), contract)

    def sampled(*scale: float, device: str = "cpu") -> torch.Tensor:
        seeds, scales = np.arange(len(scale), dtype=np.uint64), np.array(scale, np.float32)
        given = scales if device == "cpu" else torch.from_numpy(scales)  # a tensor here stands for one on the device
        module.batches.clear()
        cuda.clear()
        return loop.run(held, [(len(scale), 4)], Inputs(seeds, None, [given]), pixels=False)

    exact = program(4, contract).evaluate(small, noise(range(2), SHAPE))
    for scale, captures, batch in (((2, 2), 1, 8), ((1, 1), 1, 4), ((1, 2), 0, 8), ((1, 1), 0, 4), ((3, 1), 0, 8)):
        x = sampled(*scale)
        assert cuda.count("record in pool") == captures
        assert set(module.batches) == {batch}
        if scale == (1, 1):
            torch.testing.assert_close(x, exact, rtol=1e-5, atol=1e-5)
    on_device = sampled(1, 1, device="cuda")
    assert set(module.batches) == {8}  # it is not read
    torch.testing.assert_close(on_device, exact, rtol=1e-5, atol=1e-5)
    assert len(loop._held) == 2
    module.batches.clear()
    loop.floor(held, 4)()
    assert set(module.batches) == {4}  # what `bench` compares a call at the default scale with
    assert len(loop._held) == 2


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


def refuse(*_: Any) -> None:
    raise NotCapturedError("operation not permitted when stream is capturing")


def test_a_refused_capture_is_announced_once_and_goes_on(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_batch, "record", refuse)
    loop, held = loop_of(cuda), tables()
    with pytest.warns(RuntimeWarning, match=r"'torch' cannot be captured .* \(operation not permitted .* capturing\)"):
        x = draw(loop, held)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(loop, held, size=8)
    assert loop.execution == "kernel by kernel, not captured: operation not permitted when stream is capturing"
    assert torch.allclose(x, program(4, PLAIN).evaluate(small, noise(range(3), SHAPE)), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(cuda_batch, "record", lambda *_: pytest.fail("it was refused twice and is tried again"))
    draw(loop, held, size=5)


def test_a_failure_that_passes_costs_no_graph(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    works = cuda_batch.record
    loop, held = loop_of(cuda), tables()
    monkeypatch.setattr(cuda_batch, "record", refuse)
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        x = draw(loop, held)
    monkeypatch.setattr(cuda_batch, "record", works)
    draw(loop, held, size=8)
    assert loop.execution == "one CUDA graph a batch"
    cuda.clear()
    assert torch.equal(draw(loop, held), x)
    assert "record in pool" in cuda  # the batch of the failure is made again


def test_a_backend_that_knows_better_is_not_tried(cuda: Notes) -> None:
    loop = loop_of(cuda)
    loop._backend.not_capturable = "its library says no"
    with pytest.warns(RuntimeWarning, match=r"cannot be captured in a CUDA graph \(its library says no\)"):
        draw(loop, tables())
    assert "record in pool" not in cuda


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
    monkeypatch.setattr(cuda_loop, "CudaBatch", lambda *_: made.append(1))
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

    monkeypatch.setattr(cuda_batch, "record", lambda launch, *_: launch())
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
    parts = session.timed_parts(held, 4, lambda: None)
    assert cuda == 2 * ["record in pool"]  # each in a graph of its own
    cuda.clear()
    parts.network()
    parts.updates()
    assert cuda == 2 * ["event", "wait", "replay", "event", "wait"]  # between the caller's work
    cuda.clear()
    parts.wrap(lambda: None)()
    assert cuda == ["record in pool", "event", "wait", "replay", "event", "wait"]
    session.close()
    with pytest.raises(BackendError, match="is closed"):
        session.run(held, Inputs(keys, None, ()))


# The host's work before a replay.
class Operations(TorchDispatchMode):
    """Every operation that torch is asked for: on a CUDA device, each that is not a view is a call of the driver."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def given(count: int, label: Any = 3) -> Inputs:
    """Seeds, a label and the default of the other condition of CONTRACT."""
    values, defaults = Conditions(CONTRACT, CPU)({"label": label}, count)
    assert defaults == {1}
    return Inputs(np.arange(count, dtype=np.uint64), None, values, defaults)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_call_is_one_copy_one_launch_and_two_events(count: int, cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchCuda(NetworkFiles(Path("none"), CONTRACT, Small()), CPU)
    backend.stream = cuda  # type: ignore[assignment]
    loop, held = CudaLoop(backend, CONTRACT), make_tables(program(4, CONTRACT), CONTRACT)
    first = loop.run(held, [(count, 4)], given(count), pixels=False)
    batch = loop._held[held, BatchKind(4, True, False)]
    launches = batch.graph.replay  # type: ignore[union-attr]
    monkeypatch.setattr(batch.graph, "replay", lambda: cuda.append("replay"))  # what is in the graph is not the host's
    cuda.clear()
    with Operations() as asked:
        loop.run(held, [(count, 4)], given(count), pixels=False)
    assert cuda == ["event", "wait", "replay", "event", "wait"]
    # The result's memory, one copy from the host, and the copy of the result on the device.
    assert asked.seen == ["aten::empty.memory_format", "aten::copy_", "aten::copy_"]
    launches()
    assert torch.equal(batch.result[:count], first)
    monkeypatch.setattr(batch.graph, "replay", launches)
    assert not torch.equal(loop.run(held, [(count, 4)], given(count, label=5), pixels=False), first)
    assert torch.equal(loop.run(held, [(count, 4)], given(count), pixels=False), first)


def test_noise_that_is_not_finite_is_the_callers(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device it is looked at in the first call; here a tensor that says it is there."""
    wrong = Inputs(None, torch.full((2, 30), torch.nan), ())
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with pytest.raises(InputError, match="noise has NaN or infinite values, expected finite ones"):
        look_at_device_values(PLAIN, wrong)


def test_after_a_failure_nothing_reads_what_the_caller_frees(cuda: Notes) -> None:
    loop, held = loop_of(cuda), tables()
    draw(loop, held)
    cuda.clear()
    with pytest.raises(BackendError, match="sampling a batch of 4 failed"):
        loop.run(held, [(5, 4)], Inputs(np.arange(5, dtype=np.uint64), None, ()), pixels=False)  # five into four
    assert cuda == ["event", "wait", "synchronize"]
