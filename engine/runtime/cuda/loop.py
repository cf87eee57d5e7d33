"""What a call does around the captured schedule of a CUDA device: one launch a batch. One evaluation is in batch.py.

The loop over evaluations is `CudaBatch.launch` there. This file prepares, captures and replays it.

What a call asks of the driver, for one batch of seeds with conditions on the host:

    record, wait for the caller's stream      1 event
    copy seeds and conditions                 1 copy from the host, of one pinned block
    launch the graph                          1 launch
    copy the result to the caller's tensor    1 copy on the device
    record, the caller's stream waits         1 event

The host waits for nothing. Between the first and the last evaluation nothing allocates or comes back to Python. A
backend that cannot be captured runs the same launches one by one, which is announced once and shown by `pfdiff info`.

Between two replays nothing inside the graphs' memory has to survive, and replays never overlap, so all graphs of one
engine share one memory pool.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, final

import torch

from ....kernels.launch import check_triton
from ...backends.abstract import Backend
from ...contract.contract import Contract
from ...device import check_batch_fits
from ...errors import BackendError, PfdiffError, first_line
from ...tensors import lasting
from ..decoder import LoadedDecoder, not_finite
from ..inputs import Inputs, Values, look_at_device_values
from ..loop import Chunk, Loop, Tables, result_shape, slices
from .batch import BatchKind, CudaBatch, bytes_needed
from .capture import NotCapturedError, record

LARGEST_CACHE = 16
LARGEST_SHARE = 64  # programs, of all graphs together
ATTEMPTS = 2  # captures that may fail for a reason that passes, such as another thread that synchronises the device


@final
class CudaLoop(Loop):
    """Batches of one backend in a bounded cache, the least recently used dropped first.

    Everything runs on the backend's own stream, before which the caller's current stream is waited for and which that
    stream waits for afterwards: calls are asynchronous and in order, whatever streams the caller uses.
    """

    def __init__(
        self,
        backend: Backend,
        contract: Contract,
        decoder: LoadedDecoder | None = None,
        *,
        graph: bool = True,
        largest: int = LARGEST_CACHE,
    ) -> None:
        assert backend.stream is not None
        self.device = backend.device
        self._backend = backend
        self._contract = contract
        self._decoder = decoder
        self._largest = largest
        self._held: OrderedDict[tuple[Tables, BatchKind], CudaBatch] = OrderedDict()
        self._stream = backend.stream
        self._ready = torch.cuda.Event()  # the caller's stream has done what the call may read
        self._pool: Any = None
        self._refused = "" if graph else "not wanted"
        self._attempts = ATTEMPTS if graph else 0
        check_triton(self.device)

    @property
    def execution(self) -> str:
        """How schedules are run: captured, or why not."""
        if not self._refused:
            return "one CUDA graph a batch"
        return f"kernel by kernel, not captured: {self._refused}"

    def run(self, tables: Tables, chunks: Sequence[Chunk], inputs: Inputs, *, pixels: bool) -> torch.Tensor:
        self._check_stream()
        shape = (inputs.count, *result_shape(self._contract, self._decoder, pixels=pixels))
        into = torch.empty(shape, dtype=torch.uint8 if pixels else torch.float32, device=self.device)
        with self._ordered() as done:
            for part, bucket in slices(chunks):
                given = inputs if len(chunks) == 1 else inputs.part(part)
                kind = self._kind(tables, bucket, given, pixels)
                done.append(self._run(tables, self._batch(tables, kind, given), given, into[part]))
        return into

    def _run(self, tables: Tables, batch: CudaBatch, inputs: Inputs, into: torch.Tensor) -> torch.cuda.Event:
        """One batch on our stream; the event after it."""
        with _explained(batch.kind):
            batch.use(tables)
            slot = batch.load(inputs)
            batch.run()
            into.copy_(batch.result[: inputs.count])
            slot.done = slot.done or torch.cuda.Event()
            slot.done.record(self._stream)
        return slot.done

    @contextlib.contextmanager
    def _ordered(self) -> Iterator[list[torch.cuda.Event]]:
        """On our stream, after the caller's; the caller's waits for the last event that is put into the list."""
        current, done = torch.cuda.current_stream(self.device), list[torch.cuda.Event]()
        self._ready.record(current)
        self._stream.wait_event(self._ready)
        try:
            with torch.cuda.stream(self._stream):
                yield done
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what was launched may still read what the caller is about to free
                self.wait()
            raise
        if done:
            current.wait_event(done[-1])

    def floor(self, tables: Tables, size: int) -> Callable[[], None]:
        evaluations = self._seeded(tables, size).evaluations

        def launch() -> None:
            for evaluate in evaluations:
                evaluate()

        return self.wrap(launch)

    def updates(self, tables: Tables, size: int) -> Callable[[], None]:
        batch = self._seeded(tables, size)

        def launch() -> None:
            for n in range(tables.nfe):
                batch.step(n, batch.static.out)

        return self.wrap(launch)

    def wrap(self, launch: Callable[[], None]) -> Callable[[], None]:
        start = launch if self._refused else record(launch, self._stream, self._memory()).replay
        finished = torch.cuda.Event()

        def bare() -> None:
            with self._ordered() as done:
                start()
                finished.record(self._stream)
                done.append(finished)

        return bare

    def _seeded(self, tables: Tables, size: int) -> CudaBatch:
        """The batch of a call that gives seeds and nothing else."""
        self._check_stream()
        return self._batch(tables, BatchKind(size, True, False, halved=self._halved(tables, None)), None)

    def _kind(self, tables: Tables, bucket: int, inputs: Inputs, pixels: bool) -> BatchKind:
        given = inputs.draws is not None and inputs.draws.given is not None
        halved = self._halved(tables, inputs.conditions)
        return BatchKind(bucket, inputs.seeds is not None, pixels, given, inputs.masked is not None, halved)

    def _halved(self, tables: Tables, conditions: Sequence[Values] | None) -> tuple[bool, ...]:
        """For each evaluation whether the conditional half of guidance is enough; empty without guidance.

        conditions: None for their defaults.
        """
        unit = self._backend.unit_scale
        if unit is None:
            return ()
        place = [one.name for one in self._contract.conditions].index(unit.condition)
        scale = self._contract.conditions[place].values(None, 1) if conditions is None else conditions[place]
        return tuple(unit.known(scale, tables.times).tolist())

    def wait(self) -> None:
        self._stream.synchronize()

    def clear(self) -> None:
        self.wait()
        self._held.clear()
        self._pool = None

    def _batch(self, tables: Tables, kind: BatchKind, inputs: Inputs | None) -> CudaBatch:
        """The batch of a program and kind, made and captured when it is first asked for."""
        key = (tables, kind)
        if key not in self._held:
            self._held[key] = self._shared(tables, kind, inputs) or self._made(tables, kind, inputs)
            while len(set(self._held.values())) > self._largest or len(self._held) > LARGEST_SHARE:
                self.wait()  # what is dropped may still be running
                (oldest, _), batch = self._held.popitem(last=False)
                batch.forget(oldest)
        self._held.move_to_end(key)
        return self._held[key]

    def _shared(self, tables: Tables, kind: BatchKind, inputs: Inputs | None) -> CudaBatch | None:
        """A batch of another program whose launches are the same, None without; the first samples were looked at."""
        for (_, other), batch in self._held.items():
            if other == kind and batch.fits(tables):
                with torch.cuda.device(self.device), torch.cuda.stream(self._stream), _explained(kind):
                    with lasting():
                        batch.add(tables)
                    batch.use(tables)
                    if inputs is not None:
                        look_at_device_values(self._contract, inputs)
                        batch.load(inputs)
                    self._check_finite(batch)
                return batch
        return None

    def _made(self, tables: Tables, kind: BatchKind, inputs: Inputs | None) -> CudaBatch:
        """A new batch whose first samples were looked at.

        Raises BackendError before anything is allocated when the device has too little memory.
        """
        check_batch_fits(kind.bucket, self._bytes_per_sample(tables, kind), self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream), _explained(kind):
            with lasting():
                batch = CudaBatch(self._backend, self._contract, tables, kind, self._decoder)
            if inputs is not None:
                look_at_device_values(self._contract, inputs)
                batch.load(inputs)  # so that the network warms up on what it is meant for
            self._capture(batch)
            self._check_finite(batch)  # waits, so the slot of `load` is free again
        return batch

    def _bytes_per_sample(self, tables: Tables, kind: BatchKind) -> int:
        """Buffers, and what the larger of the networks needs: they run one after the other."""
        static = bytes_needed(tables, self._contract, replace(kind, bucket=1), self._backend.dtype, self._decoder)
        decoding = self._decoder.backend.bytes_per_sample if self._decoder and kind.pixels else 0
        return static + max(self._backend.bytes_per_sample, decoding)

    def _memory(self) -> Any:
        """The pool that all graphs of this engine allocate from."""
        if self._pool is None:
            self._pool = torch.cuda.MemPool()
        return self._pool

    def _capture(self, batch: CudaBatch) -> None:
        """Capture the batch, or say why not. A failure that may pass is tried once more, with the next new batch."""
        if not self._attempts:
            return
        problem = self._backend.not_capturable
        if batch.decode and self._decoder and not problem:
            problem = self._decoder.backend.not_capturable
        if problem:
            self._attempts = 0
        else:
            try:
                batch.capture(self._stream, self._memory())
            except NotCapturedError as error:
                problem = str(error)
                self._attempts -= 1
                batch.launch()  # what fails without a capture too says so here
                self._stream.synchronize()
            else:
                self._captured()
                return
        if not self._refused:
            warnings.warn(
                f"backend '{self._backend.name}' cannot be captured in a CUDA graph ({problem}); "
                "the schedule runs kernel by kernel, slower for small networks",
                RuntimeWarning,
                stacklevel=2,
            )
        self._refused = problem

    def _captured(self) -> None:
        """A capture worked: batches for which it did not are made again when they are next asked for."""
        if self._refused:
            self._refused = ""
            self.wait()  # what is dropped may still be running
            for key in [key for key, batch in self._held.items() if batch.graph is None]:
                del self._held[key]

    def _check_finite(self, batch: CudaBatch) -> None:
        """Wait for the first run and look at it. Later runs are not waited for, so they are not looked at."""
        batch.run()
        if not bool(torch.isfinite(batch.samples).all()):
            raise BackendError(
                f"the samples are not finite: the network overflows in {self._contract.precision} or gives NaN; "
                "check the network, its conditions and its time scale, and try precision fp32"
            )
        if batch.decode and self._decoder and not bool(torch.isfinite(batch.decode()).all()):
            raise BackendError(not_finite(self._decoder.contract))

    def _check_stream(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise BackendError(
                "this stream is being captured in a CUDA graph, and an engine brings its own; "
                "sample outside the capture"
            )


@contextlib.contextmanager
def _explained(kind: BatchKind) -> Iterator[None]:
    """Turns what a CUDA library raises into one sentence."""
    try:
        yield
    except PfdiffError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(
            f"batch {kind.bucket} does not fit the device's memory ({first_line(error)}); build with a smaller --batch"
        ) from error
    except Exception as error:  # whatever the backend's library raises
        raise BackendError(f"sampling a batch of {kind.bucket} failed: {first_line(error)}") from error
