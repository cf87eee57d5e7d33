"""The loop of a program on a CPU, the same for every backend.

bucket    static buffers for one batch size: two matrices [B + 1, batch * elements] float32. The last row of each
          is the network's output, the others are the states, row 0 the network's input. One update is one small
          matrix product (W_n | w_n) @ matrix, written into the other matrix; then the two change places.
session   cuts a request into buckets, pads the last one with a copy of its last sample, and takes one caller at a
          time. A sample does not depend on its neighbours, so what stands in the padding changes nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from .backends.abstract import Backend, Buffers, first_line
from .contract import Contract
from .errors import BackendError, InputError, PfdiffError
from .noise import fill_noise
from .program import Program

# OpenBLAS splits a product over threads from about 2^18 multiplications. Beside the network's own threads that costs
# more than it brings: 8 ms in place of 0.7 ms for [2, 3] @ [3, 786432] on two busy cores. Blocks stay below.
MULTIPLICATIONS = 200_000
ALIGNMENT = 16  # floats: every row starts on a cache line

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


@final
@dataclass(frozen=True, eq=False)
class Tables:
    """A program as the loop reads it; coefficients float32, the one cast.

    update [N, B, B + 1] = (W | w); init [B]; p, q, c_in [N]; times [N] in the network's dtype, scaled; clip or None.
    """

    update: NDArray[np.float32]
    init: NDArray[np.float32]
    p: NDArray[np.float32]
    q: NDArray[np.float32]
    c_in: NDArray[np.float32]
    times: NDArray[np.generic]
    clip: float | None

    @property
    def nfe(self) -> int:
        return len(self.update)

    @property
    def buffers(self) -> int:
        return len(self.init)

    @property
    def scaled(self) -> bool:
        """Whether some c_in differs from 1, so that the network needs an input of its own."""
        return bool((self.c_in != 1).any())


def make_tables(program: Program, contract: Contract) -> Tables:
    """The tables of `program` for the network of `contract`. Raises InputError when its times cannot be fed."""
    return Tables(
        update=np.concatenate([program.W, program.w[:, :, None]], axis=2).astype(np.float32),
        init=program.init.astype(np.float32),
        p=program.p.astype(np.float32),
        q=program.q.astype(np.float32),
        c_in=program.c_in.astype(np.float32),
        times=contract.feed_times(program.network_times),
        clip=program.clip,
    )


def plan_chunks(count: int, buckets: Sequence[int]) -> list[tuple[int, int]]:
    """(samples, bucket) pairs that serve `count` samples with ascending `buckets`.

    The smallest bucket that takes all the rest, if at least half of it is used; else the largest that is filled. Less
    than half of any bucket is padding, unless the smallest is larger than what is left.
    """
    chunks: list[tuple[int, int]] = []
    while count > 0:
        enough = [size for size in buckets if size >= count]
        filled = [size for size in buckets if size <= count]
        bucket = enough[0] if enough and (2 * count >= enough[0] or not filled) else filled[-1]
        chunks.append((min(count, bucket), bucket))
        count -= bucket
    return chunks


@final
class Bucket:
    """Static buffers of one batch size for programs of one number of states, bound to the backend once."""

    def __init__(self, backend: Backend, contract: Contract, size: int, states: int, scaled: bool) -> None:
        elements = size * math.prod(contract.shape)
        stride = -(-elements // ALIGNMENT) * ALIGNMENT
        self.size = size
        self._matrices = [torch.zeros(states + 1, stride)[:, :elements] for _ in range(2)]
        self._rows = [matrix.numpy() for matrix in self._matrices]
        self._products = [_blocks(*self._rows), _blocks(*self._rows[::-1])]
        self._shape = shape = (size, *contract.shape)

        # The network reads row 0 and writes the last row themselves, unless its dtype or scale differs.
        converted = backend.dtype != torch.float32
        self._x = torch.zeros(shape, dtype=backend.dtype) if converted or scaled else None
        self._out = torch.zeros(shape, dtype=backend.dtype) if converted else None
        self._scratch = np.empty(elements, np.float32)  # of the clip
        time_dtype = TORCH_DTYPES[contract.time_dtype]
        time = torch.zeros((size,) if contract.time_rank else (), dtype=time_dtype)
        self._time = time.numpy()
        self.conditions = tuple(
            torch.zeros((size, *one.shape), dtype=TORCH_DTYPES[one.dtype]) for one in contract.conditions
        )
        self.evaluations = [
            backend.bind(
                Buffers(
                    x=matrix[0].view(shape) if self._x is None else self._x,
                    t=time,
                    conditions=self.conditions,
                    out=matrix[-1].view(shape) if self._out is None else self._out,
                )
            )
            for matrix in self._matrices
        ]

    def load(self, tables: Tables, noise: NDArray[np.float32], conditions: Sequence[NDArray[np.generic]]) -> None:
        """Set the states to init * noise [m, elements] and the conditions [m, ..]; m <= size, the last is repeated."""
        count = len(noise)
        for j, init in enumerate(tables.init):
            state = self._rows[0][j].reshape(self.size, -1)
            np.multiply(noise, init, out=state[:count])
            state[count:] = state[count - 1]
        for buffer, values in zip(self.conditions, conditions, strict=True):
            buffer[:count].copy_(torch.from_numpy(values if values.flags.writeable else values.copy()))
            buffer[count:] = buffer[count - 1]

    def run(self, tables: Tables) -> torch.Tensor:
        """Every evaluation of the program; the samples [size, *shape], a view that the next run overwrites."""
        here = 0
        n = 0
        try:
            with np.errstate(all="ignore"):  # what is not finite is found by the check
                for n, update in enumerate(tables.update):
                    out = self._rows[here][-1]
                    self._time.fill(tables.times[n])
                    if self._x is not None:
                        torch.mul(self._matrices[here][0].view(self._shape), float(tables.c_in[n]), out=self._x)
                    self.evaluations[here]()
                    if self._out is not None:
                        self._matrices[here][-1].view(self._shape).copy_(self._out)
                    # The sum is finite unless something in it is not, or, with no harm done, it overflows.
                    if not math.isfinite(np.add.reduce(out)) and not np.isfinite(out).all():
                        raise BackendError(_not_finite(tables, n))
                    if tables.clip is not None:
                        self._clip(self._rows[here], tables.p[n], tables.q[n], tables.clip)
                    for source, target in self._products[here]:
                        np.matmul(update, source, out=target)
                    here = 1 - here
        except PfdiffError:
            raise
        except Exception as error:  # whatever the backend's library raises
            raise BackendError(
                f"evaluation {n + 1} of {tables.nfe} failed at time {tables.times[n]:g}: {first_line(error)}"
            ) from error
        return self._matrices[here][0].view(self._shape)

    def _clip(self, rows: NDArray[np.float32], p: np.float32, q: np.float32, clip: float) -> None:
        """z = clamp(p s_0 + q out, -clip, clip) in the last row."""
        out = rows[-1]
        np.multiply(rows[0], p, out=self._scratch)
        out *= q
        out += self._scratch
        np.clip(out, -clip, clip, out=out)


def _blocks(source: NDArray[np.float32], target: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], ...]]:
    """The column blocks of `source` [B + 1, elements] and of the states of `target`, for one product each."""
    inputs, elements = source.shape
    width = max(1, MULTIPLICATIONS // (inputs * (inputs - 1)))
    starts = range(0, elements, width)
    return [(source[:, start : start + width], target[:-1, start : start + width]) for start in starts]


def _not_finite(tables: Tables, n: int) -> str:
    return (
        f"the network's output is not finite at evaluation {n + 1} of {tables.nfe}, time {tables.times[n]:g}; "
        "check the network, its conditions and its time scale, and try precision fp32"
    )


@final
class Session:
    """One backend, its buckets, one caller at a time: use from two threads at once raises BackendError."""

    def __init__(self, backend: Backend, contract: Contract, buckets: Sequence[int]) -> None:
        self.backend: Backend = backend
        self._contract = contract
        self._sizes = sorted(buckets)
        self._buckets: dict[tuple[int, int, bool], Bucket] = {}
        self._lock = threading.Lock()
        self._closed = False

    def run(
        self,
        tables: Tables,
        count: int,
        seeds: NDArray[np.uint64] | None,
        noise: NDArray[np.float32] | None,
        conditions: Sequence[NDArray[np.generic]],
    ) -> torch.Tensor:
        """Samples float32 [count, *shape] from seeds [count] or noise [count, elements]; conditions [count, ..]."""
        self._enter()
        try:
            samples = torch.empty((count, *self._contract.shape), dtype=torch.float32)
            start = 0
            for size, bucket_size in plan_chunks(count, self._sizes):
                part = slice(start, start + size)
                bucket = self._bucket(tables, bucket_size)
                bucket.load(tables, self._noise(part, seeds, noise), [values[part] for values in conditions])
                samples[part] = bucket.run(tables)[:size]
                start += size
            return samples
        finally:
            self._lock.release()

    def bucket(self, tables: Tables, size: int) -> Bucket:
        """The bucket of `size` for `tables`, made when it is first asked for. Not for use beside `run`."""
        self._enter()
        try:
            return self._bucket(tables, size)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Free buffers and network; twice is fine. Raises BackendError while another thread samples."""
        if not self._closed:
            self._enter()
            self._closed = True
            self._buckets.clear()
            self.backend.close()
            self._lock.release()

    def _enter(self) -> None:
        if self._closed:
            raise BackendError("this engine is closed; load it again with pfdiff.load")
        if not self._lock.acquire(blocking=False):
            raise BackendError("this engine is sampling in another thread; load one engine a thread, or take turns")

    def _bucket(self, tables: Tables, size: int) -> Bucket:
        key = (size, tables.buffers, tables.scaled)
        if key not in self._buckets:
            self._buckets[key] = Bucket(self.backend, self._contract, *key)
        return self._buckets[key]

    def _noise(
        self, part: slice, seeds: NDArray[np.uint64] | None, noise: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        if noise is not None:
            return noise[part]
        if seeds is None:
            raise InputError("neither seeds nor noise is given; give one of them")
        made = np.empty((part.stop - part.start, math.prod(self._contract.shape)), np.float32)
        fill_noise(made, seeds[part])
        return made
