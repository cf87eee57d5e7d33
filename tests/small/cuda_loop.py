"""A CUDA loop on CPU tensors, with CUDA's streams and graphs replaced by notes of what was asked of them."""

from __future__ import annotations

import contextlib
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.backends.abstract import NetworkFiles
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.runtime.cuda import batch as cuda_batch
from pfdiff.engine.runtime.cuda import loop as cuda_loop
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.engine.runtime.decoder import LoadedDecoder
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import Tables, make_tables

from ..engine.test_devices import Machine
from .engine import CONTRACT, program, small

CPU = torch.device("cpu")
PLAIN = replace(CONTRACT, conditions=())


class Notes(list[str]):
    """What was asked of CUDA, in order; it is also the stream."""

    cuda_stream = 7
    device = CPU

    def synchronize(self) -> None:
        self.append("synchronize")

    def wait_event(self, event: Any) -> None:
        self.append("wait")


class Event:
    """A CUDA event that is done as soon as it was recorded, unless `pending`."""

    pending = False
    notes: Notes

    def record(self, stream: Any) -> None:
        self.notes.append("event")

    def query(self) -> bool:
        return not self.pending

    def synchronize(self) -> None:
        self.notes.append("synchronize event")


def noted(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """CUDA replaced, until the test ends."""
    notes = Notes()
    Machine().install(monkeypatch)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: notes)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "Event", type("Event", (Event,), {"notes": notes}))
    monkeypatch.setattr(torch.cuda, "MemPool", lambda: "pool")

    def record(launch: Any, stream: Any, pool: Any) -> Any:
        notes.append(f"record in {pool}")

        def replay() -> None:
            notes.append("replay")
            launch()

        return types.SimpleNamespace(replay=replay)

    monkeypatch.setattr(cuda_loop, "record", record)
    monkeypatch.setattr(cuda_batch, "record", record)
    return notes


def loop_of(notes: Notes, module: Any = small, decoder: LoadedDecoder | None = None, **options: Any) -> CudaLoop:
    backend = TorchCuda(NetworkFiles(Path("none"), PLAIN, module), CPU)
    backend.stream = notes  # type: ignore[assignment]
    return CudaLoop(backend, PLAIN, decoder, **options)


def tables(nfe: int = 4) -> Tables:
    return make_tables(program(nfe, PLAIN), PLAIN)


def draw(loop: CudaLoop, held: Tables, size: int = 4, count: int = 3, pixels: bool = False) -> torch.Tensor:
    return loop.run(held, [(count, size)], Inputs(np.arange(count, dtype=np.uint64), None, ()), pixels=pixels)
