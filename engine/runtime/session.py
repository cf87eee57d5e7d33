"""Requests of any size on one backend: cut into buckets, one caller at a time, on a CPU or a CUDA device.

The last bucket is padded with copies of its last sample. A sample does not depend on its neighbours, so padding changes
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import final

import torch

from ..backends.abstract import Backend
from ..contract.contract import Contract
from ..errors import BackendError
from .cpu_loop import CpuLoop
from .decoder import LoadedDecoder
from .inputs import Inputs
from .loop import Chunk, Loop, Tables
from .timing.latency import TimedParts, timer_of


def plan_chunks(count: int, buckets: Sequence[int]) -> list[Chunk]:
    """(samples, bucket) pairs that serve `count` samples with ascending `buckets`.

    The smallest bucket that takes all the rest, if at least half of it is used; else the largest that is filled. Less
    than half of any bucket is padding, unless the smallest is larger than what is left.
    """
    chunks: list[Chunk] = []
    while count > 0:
        enough = [size for size in buckets if size >= count]
        filled = [size for size in buckets if size <= count]
        bucket = enough[0] if enough and (2 * count >= enough[0] or not filled) else filled[-1]
        chunks.append((min(count, bucket), bucket))
        count -= bucket
    return chunks


@final
class Session:
    """One backend, its buckets, one caller at a time: use from two threads at once raises BackendError."""

    def __init__(
        self,
        backend: Backend,
        contract: Contract,
        buckets: Sequence[int],
        decoder: LoadedDecoder | None = None,
        *,
        graph: bool = True,
    ) -> None:
        self.backend: Backend = backend
        self._contract = contract
        self._decoder = decoder
        self._sizes = sorted(buckets)
        self._loop = _make_loop(backend, contract, decoder, graph)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def execution(self) -> str:
        """How schedules are run, in a few words: captured, or why not."""
        return self._loop.execution

    def run(self, tables: Tables, inputs: Inputs, *, pixels: bool = False) -> torch.Tensor:
        """Samples float32 [m, *shape], or with `pixels` decoded uint8 [m, H, W, C], on the backend's device."""
        self._enter()
        try:
            count = inputs.count
            chunks = [(count, count)] if count in self._sizes else plan_chunks(count, self._sizes)
            return self._loop.run(tables, chunks, inputs, pixels=pixels)
        finally:
            self._lock.release()

    def timed_parts(self, tables: Tables, size: int, whole: Callable[[], object]) -> TimedParts:
        """`whole`, a call of the bucket `size`, and beside it what it is made of. Not for use beside `run`."""
        self._enter()
        try:
            return TimedParts(
                whole=whole,
                network=self._loop.floor(tables, size),
                updates=self._loop.updates(tables, size),
                wrap=self._loop.wrap,
                timer=timer_of(self._loop.device),
            )
        finally:
            self._lock.release()

    def wait(self) -> None:
        """Return when the device has done everything that `run` started."""
        self._loop.wait()

    def close(self) -> None:
        """Free buffers and networks; twice is fine. Raises BackendError while another thread samples."""
        if not self._closed:
            self._enter()
            self._closed = True
            self._loop.clear()
            self.backend.close()
            if self._decoder is not None:
                self._decoder.backend.close()
            self._lock.release()

    def _enter(self) -> None:
        if self._closed:
            raise BackendError("this engine is closed; load it again with pfdiff.load")
        if not self._lock.acquire(blocking=False):
            raise BackendError("this engine is sampling in another thread; load one engine a thread, or take turns")


def _make_loop(backend: Backend, contract: Contract, decoder: LoadedDecoder | None, graph: bool) -> Loop:
    if backend.device.type == "cpu":
        return CpuLoop(backend, contract, decoder)
    from .cuda.loop import CudaLoop

    return CudaLoop(backend, contract, decoder, graph=graph)
