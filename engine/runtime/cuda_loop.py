"""The whole schedule of a program on a CUDA device: captured once, replayed with one launch a batch.

    {noise from seeds, start, N x (network, step), decoder of a latent model, pixels}

Everything that a replay reads stands in buffers that were allocated before: seeds, noise, conditions, the coefficient
table and the times. Changing what is in them needs no recapture. Nothing between the first and the last evaluation
allocates, synchronises or comes back to Python. A backend that cannot be captured runs the same launches eagerly,
which is announced once and shown by `pfdiff info`.

Capture is `capture.record`'s (CUDA C++ Programming Guide, "CUDA Graphs"). Between two replays nothing inside the
graphs' memory has to survive, and replays never overlap, so all graphs of one engine share one memory pool.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from ...kernels.images import images
from ...kernels.noise import noise
from ...kernels.step import step
from ...kernels.table import Update, coefficients, updates
from ..backends.abstract import Backend, Buffers, first_line
from ..contract import Contract
from ..device import check_batch_fits
from ..errors import BackendError, PfdiffError
from ..tensors import TORCH_DTYPES, fill, from_numpy, lasting
from .capture import record
from .decoder import LoadedDecoder, not_finite
from .loop import Inputs, Loop, Tables

LARGEST_CACHE = 16
ALIGNMENT_BYTES = 256


@final
@dataclass(frozen=True)
class BatchKind:
    """What one captured graph is for: its bucket, whether it makes its own noise, whether it ends in pixels."""

    bucket: int
    seeded: bool
    pixels: bool


def bytes_needed(
    tables: Tables, contract: Contract, variant: BatchKind, dtype: torch.dtype, decoder: LoadedDecoder | None = None
) -> int:
    """Device bytes of the static buffers of one variant, without what the networks themselves need."""
    elements = math.prod(contract.shape)
    width = torch.empty((), dtype=dtype).element_size()
    separate = is_separate(tables, dtype)
    each = elements * (4 * tables.buffers + 4 + width + (width if separate else 0))
    if variant.pixels:
        each += math.prod(decoder.contract.image) + decoder.bytes_per_sample if decoder else elements
    return variant.bucket * each


def is_separate(tables: Tables, dtype: torch.dtype) -> bool:
    """Whether the network's input is a buffer of its own: another dtype than the state, or scaled (EDM)."""
    return dtype != torch.float32 or tables.scaled


@final
class CudaBatch:
    """Static buffers of one variant and the launches over them; `capture` records them, `run` runs or replays them.

    Only `capture` needs CUDA: on a CPU `run` is the same loop, which is how it is tested.
    """

    def __init__(
        self,
        backend: Backend,
        contract: Contract,
        tables: Tables,
        variant: BatchKind,
        decoder: LoadedDecoder | None = None,
    ) -> None:
        device, bucket, program = backend.device, variant.bucket, tables.program
        shape = (bucket, *contract.shape)
        elements = math.prod(contract.shape)
        separate = is_separate(tables, backend.dtype)
        self.variant = variant
        self.range = contract.data_range
        self.states = torch.zeros(tables.buffers, bucket * elements, dtype=torch.float32, device=device)
        self.y_in = torch.zeros(bucket * elements, dtype=backend.dtype, device=device) if separate else None
        self.noise = torch.zeros(bucket, elements, dtype=torch.float32, device=device)
        self.seeds = torch.zeros(bucket, dtype=torch.int64, device=device)
        self.samples = self.states[0].view(shape)
        self.pixels = self.decode = None
        if variant.pixels:
            channels, height, width = decoder.contract.image if decoder else contract.shape
            self.decode = decoder.bind(self.samples) if decoder else None
            self.pixels = torch.zeros(bucket, height, width, channels, dtype=torch.uint8, device=device)
        rows = coefficients(
            init=program.init,
            p=program.p,
            q=program.q,
            W=program.W,
            w=program.w,
            c_in=program.c_in,
            clip=program.clip,
        )
        self.table = torch.from_numpy(rows).to(device)
        self.updates: tuple[Update, ...] = updates(
            p=program.p, W=program.W, w=program.w, clip=program.clip is not None, separate=separate
        )
        self.conditions = tuple(
            torch.zeros((bucket, *one.shape), dtype=TORCH_DTYPES[one.dtype], device=device)
            for one in contract.conditions
        )
        self.times = _time_rows(tables, contract, bucket, device)
        x = (self.states[0] if self.y_in is None else self.y_in).view(shape)
        self.out = torch.zeros(shape, dtype=backend.dtype, device=device)
        self.evaluations = backend.bind(
            [
                Buffers(x, row[:bucket] if contract.time_rank else row[0], self.conditions, self.out)
                for row in self.times
            ]
        )
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, inputs: Inputs) -> None:
        """Fill the inputs of at most `bucket` samples; the rest repeats the last."""
        if inputs.seeds is not None:
            fill(self.seeds, torch.from_numpy(inputs.seeds.view("int64")))
        if inputs.noise is not None:
            fill(self.noise, inputs.noise)
        for buffer, values in zip(self.conditions, inputs.conditions, strict=True):
            fill(buffer, from_numpy(values))

    def launch(self) -> None:
        """Every kernel of one batch, in order, on the current stream."""
        last = len(self.evaluations)
        if self.variant.seeded:
            noise(self.noise, self.seeds)
        self.step(last, self.noise)
        for n, evaluate in enumerate(self.evaluations):
            self.step(n, evaluate())
        if self.pixels is not None:
            images(self.pixels, self.decode() if self.decode else self.samples, *self.range)

    def step(self, row: int, out: torch.Tensor) -> None:
        """The update after evaluation `row`; row N sets the states from the noise."""
        update = self.updates[row]
        step(self.states, self.y_in if update.separate else None, out.view(-1), self.table, row, update)

    def capture(self, stream: torch.cuda.Stream, pool: Any) -> None:
        """Record `launch`. Raises whatever makes it impossible; the sampler can still `launch`."""
        self.graph = record(self.launch, stream, pool)

    def run(self) -> None:
        """One batch on the current stream: a replay, or the launches where there is no graph."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.launch()

    @property
    def result(self) -> torch.Tensor:
        """Samples float32 [bucket, *shape] or pixels uint8 [bucket, H, W, C]; the next run overwrites them."""
        return self.samples if self.pixels is None else self.pixels


def _time_rows(tables: Tables, contract: Contract, bucket: int, device: torch.device) -> torch.Tensor:
    """[N, bucket or more] of the network's dtype: a row for each evaluation, so that nothing is written between two.

    Each row starts on an address that TensorRT and vector loads take.
    """
    fed = torch.from_numpy(tables.times).to(TORCH_DTYPES[contract.time_dtype])
    aligned = ALIGNMENT_BYTES // fed.element_size()
    return fed[:, None].expand(-1, -(-bucket // aligned) * aligned).contiguous().to(device)


@final
class CudaLoop(Loop):
    """Samplers of one backend in a bounded cache, the least recently used dropped first.

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
        self._pool: Any = None
        self._refused = "" if graph else "not wanted"

    @property
    def execution(self) -> str:
        """How schedules are run: captured, or why not."""
        if not self._refused:
            return "one CUDA graph a batch"
        return f"kernel by kernel, not captured: {self._refused}"

    def empty(self, shape: Sequence[int], *, pixels: bool) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8 if pixels else torch.float32, device=self.device)

    def tensor(self, result: torch.Tensor) -> torch.Tensor:
        return result

    def run(self, tables: Tables, size: int, inputs: Inputs, *, pixels: bool, into: torch.Tensor) -> None:
        self._check_stream()
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        sampler = self._sampler(tables, BatchKind(size, inputs.seeds is not None, pixels), inputs)
        with torch.cuda.stream(self._stream), _explained(sampler.variant):
            sampler.load(inputs)
            sampler.run()
            into.copy_(sampler.result[: inputs.count])
        current.wait_stream(self._stream)

    def floor(self, tables: Tables, size: int) -> Callable[[], None]:
        evaluations = self._seeded(tables, size).evaluations

        def launch() -> None:
            for evaluate in evaluations:
                evaluate()

        return self.alone(launch)

    def updates(self, tables: Tables, size: int) -> Callable[[], None]:
        sampler = self._seeded(tables, size)

        def launch() -> None:
            for n in range(tables.nfe):
                sampler.step(n, sampler.out)

        return self.alone(launch)

    def alone(self, launch: Callable[[], None]) -> Callable[[], None]:
        graph = None if self._refused else record(launch, self._stream, self._pool)

        def bare() -> None:
            current = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                if graph is None:
                    launch()
                else:
                    graph.replay()
            current.wait_stream(self._stream)

        return bare

    def _seeded(self, tables: Tables, size: int) -> CudaBatch:
        self._check_stream()
        return self._sampler(tables, BatchKind(size, True, False), None)

    def wait(self) -> None:
        self._stream.synchronize()

    def clear(self) -> None:
        self.wait()
        self._held.clear()

    def _sampler(self, tables: Tables, variant: BatchKind, inputs: Inputs | None) -> CudaBatch:
        """The sampler of a program and variant, made and captured when it is first asked for.

        Raises BackendError before anything is allocated when the device has too little memory.
        """
        key = (tables, variant)
        if key not in self._held:
            check_batch_fits(variant.bucket, self._bytes_per_sample(tables, variant), self.device)
            with torch.cuda.device(self.device), torch.cuda.stream(self._stream), _explained(variant):
                with lasting():
                    sampler = CudaBatch(self._backend, self._contract, tables, variant, self._decoder)
                if inputs is not None:
                    sampler.load(inputs)  # so that the network warms up on what it is meant for
                self._capture(sampler)
                self._check_finite(sampler)
            self._held[key] = sampler
            while len(self._held) > self._largest:
                self.wait()  # what is dropped may still be running
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def _bytes_per_sample(self, tables: Tables, variant: BatchKind) -> int:
        """Buffers, and what the larger of the networks needs: they run one after the other."""
        static = bytes_needed(tables, self._contract, replace(variant, bucket=1), self._backend.dtype, self._decoder)
        decoding = self._decoder.backend.bytes_per_sample if self._decoder and variant.pixels else 0
        return static + max(self._backend.bytes_per_sample, decoding)

    def _capture(self, sampler: CudaBatch) -> None:
        if self._refused:
            return
        if not self._held:  # torch refuses a pool whose last graph is gone
            self._pool = torch.cuda.graph_pool_handle()
        problem = self._backend.not_capturable
        if sampler.decode and self._decoder and not problem:
            problem = self._decoder.backend.not_capturable
        if not problem:
            try:
                sampler.capture(self._stream, self._pool)
                return
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:  # a library that synchronises, or something else that captures
                problem = first_line(error)
                sampler.launch()  # what fails without a capture too says so here
                self._stream.synchronize()
        self._refused = problem
        warnings.warn(
            f"backend '{self._backend.name}' cannot be captured in a CUDA graph ({problem}); "
            "the schedule runs kernel by kernel, slower for small networks",
            RuntimeWarning,
            stacklevel=2,
        )

    def _check_finite(self, sampler: CudaBatch) -> None:
        """Wait for the first run and look at it. Later runs are not waited for, so they are not looked at."""
        sampler.run()
        if not bool(torch.isfinite(sampler.samples).all()):
            raise BackendError(
                f"the samples are not finite: the network overflows in {self._contract.precision} or gives NaN; "
                "check the network, its conditions and its time scale, and try precision fp32"
            )
        if sampler.decode and self._decoder and not bool(torch.isfinite(sampler.decode()).all()):
            raise BackendError(not_finite(self._decoder.contract))

    def _check_stream(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise BackendError(
                "this stream is being captured in a CUDA graph, and an engine brings its own; "
                "sample outside the capture"
            )


@contextlib.contextmanager
def _explained(variant: BatchKind) -> Iterator[None]:
    """Turns what a CUDA library raises into one sentence."""
    try:
        yield
    except PfdiffError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(
            f"batch {variant.bucket} does not fit the device's memory ({first_line(error)}); "
            "build with a smaller --batch"
        ) from error
    except Exception as error:  # whatever the backend's library raises
        raise BackendError(f"sampling a batch of {variant.bucket} failed: {first_line(error)}") from error
