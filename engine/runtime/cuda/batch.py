"""One batch of a program on a CUDA device, evaluation by evaluation: its static buffers and the launches over them.

    {noise from seeds, start, N x (network, step), decoder of a latent model, pixels}

The launches read and write nothing but the static buffers. Changing what is in them needs no new capture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch

from ....kernels.images import images
from ....kernels.noise import noise
from ....kernels.step import step
from ...backends.abstract import Backend, Buffers
from ...contract.contract import Contract
from ...tensors import fill
from ..decoder import LoadedDecoder
from ..inputs import Inputs
from ..loop import Tables, as_pictures, result_shape
from .capture import Graph, record
from .coefficients import Coefficients, updates_of
from .extras import StaticExtras
from .inputs import InputRing, Slot


@final
@dataclass(frozen=True)
class BatchKind:
    """What one captured graph is for: its bucket, whether it makes its own noise, whether it ends in pixels.

    given: the noise of the way comes from the caller. masked: part of a picture is kept. halved: of each evaluation
    whether the scale of guidance is 1 for all samples; empty without guidance.
    """

    bucket: int
    seeded: bool
    pixels: bool
    given: bool = False
    masked: bool = False
    halved: tuple[bool, ...] = ()


@final
@dataclass(frozen=True, eq=False)
class StaticBuffers:
    """Everything that a replay reads or writes, but for the networks' own. A captured graph holds these addresses.

    states  float32 [B, bucket * elements], row 0 the sample     y_in    the network's input, None where it is row 0
    noise   float32 [bucket, elements]                           out     what the network writes, where it writes ours
    inputs  seeds and conditions                                 program coefficients and times
    pixels  uint8 [bucket, H, W, C], None for samples
    """

    states: torch.Tensor
    y_in: torch.Tensor | None
    noise: torch.Tensor
    out: torch.Tensor
    inputs: InputRing
    program: Coefficients
    pixels: torch.Tensor | None

    @classmethod
    def of(
        cls, backend: Backend, contract: Contract, tables: Tables, kind: BatchKind, decoder: LoadedDecoder | None
    ) -> StaticBuffers:
        """Zeros, but for the program. `bytes_needed` says beforehand how much that is."""
        device, bucket = backend.device, kind.bucket
        elements = math.prod(contract.shape)
        separate = is_separate(tables, backend.dtype)
        picture = (bucket, *result_shape(contract, decoder, pixels=True)) if kind.pixels else None
        return cls(
            states=torch.zeros(tables.buffers, bucket * elements, dtype=torch.float32, device=device),
            y_in=torch.zeros(bucket * elements, dtype=backend.dtype, device=device) if separate else None,
            noise=torch.zeros(bucket, elements, dtype=torch.float32, device=device),
            out=torch.zeros((bucket, *contract.shape), dtype=backend.dtype, device=device),
            inputs=InputRing(contract, bucket, device),
            program=Coefficients.of(tables, contract, bucket, device, masked=kind.masked),
            pixels=torch.zeros(picture, dtype=torch.uint8, device=device) if picture else None,
        )


def bytes_needed(
    tables: Tables, contract: Contract, kind: BatchKind, dtype: torch.dtype, decoder: LoadedDecoder | None = None
) -> int:
    """Device bytes of the static buffers of one kind, without what the networks themselves need."""
    elements = math.prod(contract.shape)
    separate = is_separate(tables, dtype)
    each = elements * (4 * tables.buffers + 4 + dtype.itemsize + (dtype.itemsize if separate else 0))
    if kind.pixels:
        each += math.prod(decoder.contract.image) + decoder.bytes_per_sample if decoder else elements
    each += StaticExtras.bytes_needed(contract, tables, given=kind.given, masked=kind.masked)
    return kind.bucket * each


def is_separate(tables: Tables, dtype: torch.dtype) -> bool:
    """Whether the network's input is a buffer of its own: another dtype than the state, or scaled (EDM)."""
    return dtype != torch.float32 or tables.scaled


@final
class CudaBatch:
    """The launches of one kind of batch; `capture` records them, `run` runs or replays them.

    It is made for one program. Others that touch the same states (`fits`) may be added, and `use` chooses between them.
    Only `capture` needs CUDA: on a CPU `run` is the same loop, which is how it is tested.
    """

    def __init__(
        self,
        backend: Backend,
        contract: Contract,
        tables: Tables,
        kind: BatchKind,
        decoder: LoadedDecoder | None = None,
    ) -> None:
        self.kind = kind
        self.static = static = StaticBuffers.of(backend, contract, tables, kind, decoder)
        self.extras = StaticExtras.of(tables, static.noise, static.program.kept, backend.dtype, given=kind.given)
        self._contract = contract
        self._running = tables
        self._others: dict[Tables, Coefficients] = {}  # all of them, where there are several
        self.graph: Graph | None = None
        self._range = contract.data_range
        shape = (kind.bucket, *contract.shape)
        self.samples = static.states[0].view(shape)
        self.decode = decoder.bind(self.samples) if decoder and kind.pixels else None
        self.updates = updates_of(tables, separate=static.y_in is not None, masked=kind.masked)
        x = (static.states[0] if static.y_in is None else static.y_in).view(shape)
        times = [row[: kind.bucket] if contract.time_rank else row[0] for row in static.program.times]
        conditions = static.inputs.block.conditions
        halved = kind.halved or (False,) * len(times)
        self.evaluations = backend.bind(
            [Buffers(x, t, conditions, static.out, half) for t, half in zip(times, halved, strict=True)]
        )

    def fits(self, tables: Tables) -> bool:
        """Whether the launches of this program differ from these in numbers alone."""
        separate = is_separate(tables, self.static.out.dtype)
        if (tables.buffers, tables.draws) != (self._running.buffers, self._running.draws):
            return False
        return updates_of(tables, separate=separate, masked=self.kind.masked) == self.updates

    def add(self, tables: Tables) -> None:
        """Take another program that fits."""
        bucket, device, masked = self.kind.bucket, self.static.noise.device, self.kind.masked
        for one in (tables,) if self._others else (self._running, tables):
            self._others[one] = Coefficients.of(one, self._contract, bucket, device, masked=masked)

    def forget(self, tables: Tables) -> None:
        """Free what `add` holds of a program."""
        self._others.pop(tables, None)

    def use(self, tables: Tables) -> None:
        """The next run is of this program: one copy on the device, unless the last run was."""
        if tables is not self._running:
            self.static.program.data.copy_(self._others[tables].data)
            self._running = tables

    def load(self, inputs: Inputs) -> Slot:
        """Fill the inputs of at most `bucket` samples; the rest repeats the last. See `InputRing.load`."""
        if inputs.noise is not None:
            fill(self.static.noise, inputs.noise)
        self.extras.load(inputs)
        return self.static.inputs.load(inputs)

    def launch(self) -> None:
        """Every kernel of one batch, in order, on the current stream."""
        static, last = self.static, len(self.evaluations)
        if self.kind.seeded:
            noise(static.noise, static.inputs.block.seeds)
        self.step(last, static.noise)
        for n, evaluate in enumerate(self.evaluations):
            self.step(n, evaluate())
        if static.pixels is not None:
            images(*as_pictures(static.pixels, self.decode() if self.decode else self.samples), *self._range)

    def step(self, row: int, out: torch.Tensor) -> None:
        """The update after evaluation `row`; row N sets the states from the noise."""
        static, update = self.static, self.updates[row]
        y_in = static.y_in if update.separate else None
        seeds, xi = static.inputs.block.seeds, self.extras.added(self._running, row, out)
        given = static.states, y_in, out.view(-1), static.program.table, row, update, seeds, static.program.factors
        step(*given, xi=xi, kept=self.extras.kept)

    def capture(self, stream: torch.cuda.Stream, pool: Any) -> None:
        """Record `launch`. Raises what makes it impossible; the batch can still `launch`."""
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
        return self.samples if self.static.pixels is None else self.static.pixels
