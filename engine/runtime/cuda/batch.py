"""One batch of a program on a CUDA device: its static buffers and the launches over them.

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
from ....kernels.table import Update, coefficients, noise_factors, updates
from ...backends.abstract import Backend, Buffers
from ...contract.contract import Contract
from ...tensors import TORCH_DTYPES, fill
from ..decoder import LoadedDecoder
from ..inputs import Inputs
from ..loop import Tables, as_pictures, result_shape
from .capture import Graph, record
from .extras import StaticExtras
from .inputs import ALIGNMENT_BYTES, InputRing, Slot


@final
@dataclass(frozen=True)
class BatchKind:
    """What one captured graph is for: its bucket, whether it makes its own noise, whether it ends in pixels.

    given: the noise of the way comes from the caller. masked: part of a picture is kept.
    """

    bucket: int
    seeded: bool
    pixels: bool
    given: bool = False
    masked: bool = False


@final
@dataclass(frozen=True, eq=False)
class StaticBuffers:
    """Everything that a replay reads or writes, but for the networks' own. A captured graph holds these addresses.

    states  float32 [B, bucket * elements], row 0 the sample     y_in    the network's input, None where it is row 0
    noise   float32 [bucket, elements]                           out     what the network writes, where it writes ours
    inputs  seeds and conditions                                 table   coefficients, a row for each update
    times   a row for each evaluation                            pixels  uint8 [bucket, H, W, C], None for samples
    """

    states: torch.Tensor
    y_in: torch.Tensor | None
    noise: torch.Tensor
    out: torch.Tensor
    inputs: InputRing
    table: torch.Tensor
    times: torch.Tensor
    pixels: torch.Tensor | None

    @classmethod
    def of(
        cls, backend: Backend, contract: Contract, tables: Tables, kind: BatchKind, decoder: LoadedDecoder | None
    ) -> StaticBuffers:
        """Zeros, but for table and times. `bytes_needed` says beforehand how much that is."""
        device, bucket, program = backend.device, kind.bucket, tables.program
        elements = math.prod(contract.shape)
        rows = coefficients(
            init=program.init,
            p=program.p,
            q=program.q,
            W=program.W,
            w=program.w,
            c_in=program.c_in,
            clip=program.clip,
        )
        separate = is_separate(tables, backend.dtype)
        picture = (bucket, *result_shape(contract, decoder, pixels=True)) if kind.pixels else None
        return cls(
            states=torch.zeros(tables.buffers, bucket * elements, dtype=torch.float32, device=device),
            y_in=torch.zeros(bucket * elements, dtype=backend.dtype, device=device) if separate else None,
            noise=torch.zeros(bucket, elements, dtype=torch.float32, device=device),
            out=torch.zeros((bucket, *contract.shape), dtype=backend.dtype, device=device),
            inputs=InputRing(contract, bucket, device),
            table=torch.from_numpy(rows).to(device),
            times=_time_rows(tables, contract, bucket, device),
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


def _time_rows(tables: Tables, contract: Contract, bucket: int, device: torch.device) -> torch.Tensor:
    """[N, bucket or more] of the network's dtype: a row for each evaluation, so that nothing is written between two.

    Each row starts on an address that TensorRT and vector loads take.
    """
    fed = torch.from_numpy(tables.times).to(TORCH_DTYPES[contract.time_dtype])
    aligned = ALIGNMENT_BYTES // fed.element_size()
    return fed[:, None].expand(-1, -(-bucket // aligned) * aligned).contiguous().to(device)


@final
class CudaBatch:
    """The launches of one kind of batch; `capture` records them, `run` runs or replays them.

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
        self.extras = StaticExtras.of(tables, static.noise, backend.dtype, given=kind.given, masked=kind.masked)
        self._tables = tables
        self.graph: Graph | None = None
        self._range = contract.data_range
        shape = (kind.bucket, *contract.shape)
        self.samples = static.states[0].view(shape)
        self.decode = decoder.bind(self.samples) if decoder and kind.pixels else None
        program, separate = tables.program, static.y_in is not None
        # What is added beside states and z: noise, or the network's output as it is, which the kernel takes like noise.
        self._added = program.U if program.keeps_eps else program.V
        self.updates: tuple[Update, ...] = updates(
            p=program.p,
            W=program.W,
            w=program.w,
            clip=program.clip is not None,
            separate=separate,
            V=self._added,
            masked=kind.masked,
        )
        self.factors = torch.from_numpy(noise_factors(self._added)).to(backend.device)
        x = (static.states[0] if static.y_in is None else static.y_in).view(shape)
        times = [row[: kind.bucket] if contract.time_rank else row[0] for row in static.times]
        conditions = static.inputs.block.conditions
        self.evaluations = backend.bind([Buffers(x, t, conditions, static.out) for t in times])

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
        seeds, xi = static.inputs.block.seeds, self.extras.added(self._tables, row, out)
        given = static.states, y_in, out.view(-1), static.table, row, update, seeds, self.factors
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
