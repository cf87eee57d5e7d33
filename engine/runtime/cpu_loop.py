"""The loop of a program on a CPU, the same for every backend.

Static buffers for one batch size are two matrices [B + 1, batch * elements] float32. The last row of each is the
network's output, the others are the states, row 0 the network's input. One update is (W_n | w_n) @ matrix, written
into the other matrix, to which a stochastic program adds V_n xi; then the two change places. The last one computes row
0 alone, straight into the result.

`_cpu.cpp` walks through the evaluations by itself where it was compiled, unless something is converted or clipped: at
batch 1 the few lines of Python between two evaluations cost up to a hundredth of a small network (bench/NOTES.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels import eager
from ..backends.abstract import Backend, Buffers
from ..contract.contract import Contract
from ..errors import BackendError, PfdiffError, first_line
from ..tensors import TORCH_DTYPES, array_of, fill_rows, from_numpy, lasting
from .decoder import Decode, LoadedDecoder, not_finite
from .draws import Draws
from .inputs import Inputs
from .loop import Chunk, Loop, Tables, as_pictures, result_shape, slices
from .noise import fill_noise
from .pictures.kept import Kept
from .update import all_finite, combine

try:
    from ._cpu import walk as walk_compiled
except ImportError:  # there was no C++ compiler when pfdiff was installed
    walk_compiled = None

ALIGNMENT = 16  # floats: every row starts on a cache line


@final
class Bucket:
    """Static buffers of one batch size for programs of one number of states, bound to the backend once."""

    def __init__(self, backend: Backend, contract: Contract, size: int, states: int, scaled: bool) -> None:
        elements = size * math.prod(contract.shape)
        stride = -(-elements // ALIGNMENT) * ALIGNMENT
        self.size = size
        self._matrices = [torch.zeros(states + 1, stride, dtype=torch.float32)[:, :elements] for _ in range(2)]
        self._rows = tuple(matrix.numpy() for matrix in self._matrices)
        self._shape = shape = (size, *contract.shape)

        # The network reads row 0 and writes the last row themselves, unless its dtype or scale differs.
        converted = backend.dtype != torch.float32
        self._x = torch.zeros(shape, dtype=backend.dtype) if converted or scaled else None
        self._out = torch.zeros(shape, dtype=backend.dtype) if converted else None
        self._scratch = np.empty(elements, np.float32)  # of the clip
        self._raw: NDArray[np.float32] | None = None  # the output before it, where a program takes both
        self._xi: NDArray[np.float32] | None = None  # of stochastic programs
        self._draws: Draws | None = None
        self._kept: Kept | None = None  # of a mask
        self._reached = np.zeros(1, np.int64)  # the evaluation that a walk is at
        time_dtype = TORCH_DTYPES[contract.time_dtype]
        time = torch.zeros((size,) if contract.time_rank else (), dtype=time_dtype)
        self._time = time.numpy()
        given = contract.stand_ins  # what is timed before the first call is what a call without conditions takes
        self.conditions = tuple(
            from_numpy(one.values(given.get(one.name), size)).to(TORCH_DTYPES[one.dtype]) for one in contract.conditions
        )
        self._arrays = [array_of(one) for one in self.conditions]
        sets = [
            Buffers(
                x=matrix[0].view(shape) if self._x is None else self._x,
                t=time,
                conditions=self.conditions,
                out=matrix[-1].view(shape) if self._out is None else self._out,
            )
            for matrix in self._matrices
        ]
        self.evaluations = tuple(backend.bind(sets))

    def load(self, tables: Tables, inputs: Inputs) -> None:
        """Set the states to init * noise and the conditions; at most `size` samples, the last is repeated."""
        count, self._draws = inputs.count, inputs.draws
        self._kept = None
        states, out = self._rows[0][:-1], self._rows[0][-1]
        wanted = count * len(out) // self.size
        noise = out[:wanted]  # the network's output is not there yet
        if inputs.seeds is not None:
            fill_noise(noise.reshape(count, -1), inputs.seeds)
        else:
            assert inputs.noise is not None
            noise = inputs.noise.numpy()
        if inputs.masked is not None:
            self._kept = Kept.of(tables, inputs.masked, noise, len(out))
        combine(tables.init[:, None], noise.reshape(1, -1), states[:, :wanted])
        if count < self.size:
            for state in states:
                rows = state.reshape(self.size, -1)
                rows[count:] = rows[count - 1]
        for buffer, array, values in zip(self.conditions, self._arrays, inputs.conditions, strict=True):
            assert isinstance(values, np.ndarray)  # nothing else reaches a CPU
            fill_rows(buffer, array, values)

    def run(self, tables: Tables, into: NDArray[np.float32]) -> None:
        """Every evaluation of the program; the first samples go to `into` [m, *shape], contiguous, m <= size."""
        self._reached[0] = 0
        plain = self._x is None and self._out is None and tables.clip is None
        draws = self._draws
        seeds = None if draws is None else draws.seeds
        try:
            walk = self.evaluations, self._rows, self._time, tables.times, tables.update, into, self._reached
            kept = () if self._kept is None else self._kept.arrays
            if walk_compiled is not None and plain and draws is None:
                finite = walk_compiled(*walk) if not kept else walk_compiled(*walk, None, None, self.size, *kept)
            elif walk_compiled is not None and plain and seeds is not None:
                finite = walk_compiled(*walk, tables.V, seeds, self.size, *kept)
            else:
                finite = self._walk(tables, into.reshape(1, -1))
        except PfdiffError:
            raise
        except Exception as error:  # whatever the backend's library raises
            n = int(self._reached[0])
            raise BackendError(
                f"evaluation {n + 1} of {tables.nfe} failed at time {tables.times[n]:g}: {first_line(error)}"
            ) from error
        if not finite:
            raise BackendError(_not_finite(tables, int(self._reached[0])))

    def evaluate(self, tables: Tables) -> None:
        """Every evaluation of the program, each at its time, and nothing else."""
        evaluate = self.evaluations[0]
        for time in tables.times:
            self._time.fill(time)
            evaluate()

    def _walk(self, tables: Tables, samples: NDArray[np.float32]) -> bool:
        """What `_cpu.cpp` does, for every network and program. Ends where an output is not finite, and says so."""
        for n in range(tables.nfe):
            here = n % 2
            self._reached[0] = n
            self._time.fill(tables.times[n])
            if self._x is not None:
                torch.mul(self._matrices[here][0].view(self._shape), float(tables.c_in[n]), out=self._x)
            self.evaluations[here]()
            if self._out is not None:
                self._matrices[here][-1].view(self._shape).copy_(self._out)
            last = n + 1 == tables.nfe
            if not (self._finish(tables, here, samples) if last else self.update(tables, n, here)):
                return False
        return True

    def update(self, tables: Tables, n: int, here: int) -> bool:
        """The states after evaluation n in the other matrix, from those and the network's output in matrix `here`.

        Returns whether the network's output is finite, like `_finish`.
        """
        if tables.clip is not None and not self._clip(tables, tables.clip, n, here):
            return False
        target = self._rows[1 - here][:-1]
        finite = combine(tables.update[n], self._rows[here], target)
        if tables.adds or self._kept is not None:
            self._add(tables, n, target)
        return finite

    def _finish(self, tables: Tables, here: int, samples: NDArray[np.float32]) -> bool:
        """The last update, of which only state 0 is asked for: its first elements go to `samples` [1, elements]."""
        n = tables.nfe - 1
        if tables.clip is not None and not self._clip(tables, tables.clip, n, here):
            return False
        finite = combine(tables.update[n, :1], self._rows[here][:, : samples.size], samples)
        self._add(tables, n, samples)
        return finite

    def _add(self, tables: Tables, n: int, target: NDArray[np.float32]) -> None:
        """Beside (W_n | w_n), in the first rows of `target` [m, elements]: U_n out, V_n xi_n, what a mask keeps."""
        if tables.U is not None and self._raw is not None:
            _add_multiples(tables.U[n], self._raw, target)
        if n in tables.draws and self._draws is not None:
            self._xi = xi = np.zeros(self._rows[0].shape[1], np.float32) if self._xi is None else self._xi
            self._draws.fill(xi.reshape(self.size, -1)[: self._draws.count], n, tables.draws.index(n))
            _add_multiples(tables.V[n], xi, target)
        if self._kept is not None:
            self._kept.keep(target[0], n)

    def _clip(self, tables: Tables, clip: float, n: int, here: int) -> bool:
        """z = clamp(p s_0 + q out, -clip, clip) in the last row of matrix `here`; False if out is not finite."""
        rows = self._rows[here]
        out = rows[-1]
        if not all_finite(out):
            return False
        if tables.U is not None:
            self._raw = np.empty_like(self._scratch) if self._raw is None else self._raw
            np.copyto(self._raw, out)
        with np.errstate(over="ignore"):
            np.multiply(rows[0], tables.p[n], out=self._scratch)
            out *= tables.q[n]
            out += self._scratch
        np.clip(out, -clip, clip, out=out)
        return True


def _add_multiples(factors: NDArray[np.float32], term: NDArray[np.float32], target: NDArray[np.float32]) -> None:
    """target[j] += factors[j] term in the first rows of `target` [m, elements]; rows without a factor stay."""
    for row, factor in zip(target, factors, strict=False):
        if factor:
            row += factor * term[: len(row)]


def _not_finite(tables: Tables, n: int) -> str:
    return (
        f"the network's output is not finite at evaluation {n + 1} of {tables.nfe}, time {tables.times[n]:g}; "
        "check the network, its conditions and its time scale, and try precision fp32"
    )


@final
class CpuLoop(Loop):
    """A CPU backend and its buckets, made when they are first asked for."""

    def __init__(self, backend: Backend, contract: Contract, decoder: LoadedDecoder | None = None) -> None:
        self.device = backend.device
        self._backend = backend
        self._contract = contract
        self._decoder = decoder
        self._buckets: dict[tuple[int, int, bool], Bucket] = {}
        self._decodings: dict[int, tuple[torch.Tensor, Decode]] = {}

    @property
    def execution(self) -> str:
        return "evaluation by evaluation on the CPU"

    def run(self, tables: Tables, chunks: Sequence[Chunk], inputs: Inputs, *, pixels: bool) -> torch.Tensor:
        shape = result_shape(self._contract, self._decoder, pixels=pixels)
        # NumPy's: torch's own allocation takes 0.03 ms more while its code is not in the cache.
        into = np.empty((inputs.count, *shape), np.uint8 if pixels else np.float32)
        if len(chunks) == 1:  # nothing to cut
            self._run(tables, chunks[0][1], inputs, into, pixels=pixels)
        else:
            for part, bucket in slices(chunks):
                self._run(tables, bucket, inputs.part(part), into[part], pixels=pixels)
        return torch.from_numpy(into)

    def _run(self, tables: Tables, size: int, inputs: Inputs, into: NDArray[Any], *, pixels: bool) -> None:
        bucket = self._bucket(tables, size)
        bucket.load(tables, inputs)
        if not pixels:
            bucket.run(tables, into)
            return
        samples = np.empty((size, *self._contract.shape), np.float32)
        bucket.run(tables, samples)
        images = torch.from_numpy(samples)
        if self._decoder is not None:
            images = self._decoded(images, self._decoder)
        eager.images(*as_pictures(torch.from_numpy(into), images[: inputs.count]), *self._contract.data_range)

    def floor(self, tables: Tables, size: int) -> Callable[[], None]:
        bucket = self._bucket(tables, size)
        return lambda: bucket.evaluate(tables)

    def updates(self, tables: Tables, size: int) -> Callable[[], None]:
        with lasting():
            bucket = Bucket(self._backend, self._contract, size, tables.buffers, tables.scaled)  # zeros that stay so

        def bare() -> None:
            for n in range(tables.nfe):
                bucket.update(tables, n, n % 2)

        return bare

    def wrap(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch

    def wait(self) -> None:
        pass  # run returns when the samples are there

    def clear(self) -> None:
        self._buckets.clear()
        self._decodings.clear()

    def _decoded(self, samples: torch.Tensor, decoder: LoadedDecoder) -> torch.Tensor:
        """The images float32 [size, C, H, W] of all samples of a bucket."""
        size = len(samples)
        if size not in self._decodings:
            with lasting():
                latents = torch.zeros_like(samples)
                self._decodings[size] = latents, decoder.bind(latents)
        latents, decode = self._decodings[size]
        latents.copy_(samples)
        try:
            images = decode()
        except Exception as error:  # whatever the backend's library raises
            raise BackendError(f"decoding a batch of {size} failed: {first_line(error)}") from error
        if not bool(torch.isfinite(images).all()):
            raise BackendError(not_finite(decoder.contract))
        return images

    def _bucket(self, tables: Tables, size: int) -> Bucket:
        key = (size, tables.buffers, tables.scaled)
        if key not in self._buckets:
            with lasting():
                self._buckets[key] = Bucket(self._backend, self._contract, *key)
        return self._buckets[key]
